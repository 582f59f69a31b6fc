"""Loads the weights that a run starts from: what fits its network, layer by layer.

A layer is taken whole or not at all: a convolution with a new weight and an old bias would fit neither. The
head, which is the last layer with an output per class, is replaced where the classes differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foldserve.text import escaped, join_first, quote, shape_text
from foldserve.training.checkpoint import is_checkpoint, load_checkpoint
from foldserve.training.errors import CheckpointError
from foldserve.training.folder_recipe import needs_same_side
from foldserve.training.models import MODELS
from foldserve.training.state_dict_file import check_finite_weights, read_state_dict, with_plain_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from foldserve.training.checkpoint import Checkpoint

# Counts batches; batch norm does without it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class InitialWeights:
    """Weights by name as ``source`` has them, and the checkpoint that they are in, if they are in one."""

    source: str
    tensors: dict[str, Tensor]
    checkpoint: Checkpoint | None = None
    remarks: tuple[str, ...] = ()

    @property
    def arch(self) -> str | None:
        """The network that they are of; None if the file does not say."""
        return None if self.checkpoint is None else self.checkpoint.arch

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes that they tell apart; None if the file does not say."""
        return None if self.checkpoint is None else self.checkpoint.labels

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make a network which they fit, by field; {} if the file does not say.

        A network of the user's own is none of them: a file does not decide which code runs.
        """
        there = self.checkpoint
        if there is None or there.arch not in MODELS:
            return {}
        named = {"width_factor": "width", "batch_norm": "batch_norm", "activation": "activation"}
        settings = {field: there.arch_args[name] for name, field in named.items() if name in there.arch_args}
        if needs_same_side(there.arch) and there.image.height == there.image.width:
            settings["image_size"] = there.image.height
        return {"arch": there.arch, **settings}


@dataclass(frozen=True)
class Fit:
    """Tensors to load by name, reasons for the layers that stay new, and names that the network lacks."""

    taken: dict[str, Tensor]
    new_layers: dict[str, str]
    unknown: tuple[str, ...]


def read_initial_weights(path: Path) -> InitialWeights:
    """Return the weights in ``path``: a run folder, a checkpoint, a state dict or a .safetensors file.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds values that are not finite.
    """
    if not path.exists():
        raise CheckpointError(
            f"--init {path} does not exist; expected a run folder, a checkpoint, or a state dict (.pt, "
            ".safetensors)"
        )
    if path.is_dir() or is_checkpoint(path):
        checkpoint = load_checkpoint(path)
        weights = checkpoint.weights if checkpoint.ema_weights is None else checkpoint.ema_weights
        check_finite_weights(weights, path)
        kind = f"{checkpoint.arch}, {checkpoint.weights_kind} weights"
        facts = replace(checkpoint, weights={}, ema_weights=None, trainer=None)
        return InitialWeights(f"{path} ({kind})", weights, facts)
    state = with_plain_names(read_state_dict(path), path)
    return InitialWeights(str(path), state.tensors, remarks=state.remarks)


def without_prefix(given: InitialWeights, network: nn.Module) -> InitialWeights:
    """Return ``given`` without the prefix, such as ``model.``, that hides the names of ``network`` in it.

    Of several, it is the one under which most tensors fit, and of equal ones the first in the file.
    """
    own = network.state_dict()
    found: dict[str, list[bool]] = {"": []}  # for each prefix, whether each tensor under it fits
    for name, tensor in given.tensors.items():
        parts = name.split(".")
        for count in range(len(parts)):
            plain = ".".join(parts[count:])
            if plain in own and not plain.endswith(_COUNTER):
                fits = found.setdefault(name.removesuffix(plain), [])
                fits.append(tensor.shape == own[plain].shape)
    prefix = max(found, key=lambda each: (sum(found[each]), len(found[each])))
    if not prefix:
        return given
    inside = {name: tensor for name, tensor in given.tensors.items() if name.startswith(prefix)}
    outside = {name: tensor for name, tensor in given.tensors.items() if name not in inside}
    named = {name.removeprefix(prefix): tensor for name, tensor in inside.items()}
    remark = f"removed {prefix!r} from the names of {len(inside)} of {len(given.tensors)} weights"
    return replace(given, tensors=outside | named, remarks=(*given.remarks, escaped(remark)))


def fit_weights(network: nn.Module, given: InitialWeights, labels: Sequence[str], arch: str) -> Fit:
    """Return what of ``given`` fits ``network``, an ``arch`` with an output for each of ``labels``.

    Raises:
        CheckpointError: nothing fits but perhaps the head; says what the file has and the network expects.
    """
    own = network.state_dict()
    head = find_head(network, len(labels))
    layers: dict[str, list[str]] = {}
    for name in own:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    taken: dict[str, Tensor] = {}
    new_layers: dict[str, str] = {}
    for layer, names in layers.items():
        reason = _misfit(own, given.tensors, names)
        if layer == head and given.labels is not None and given.labels != tuple(labels):
            reason = f"the head: {_class_difference(given.labels, labels)}"
        elif layer == head and reason is not None:
            reason = f"the head: {reason}"
        if reason is None:
            taken |= {
                name: given.tensors[name].to(own[name].dtype) for name in names if name in given.tensors
            }
        else:
            new_layers[layer or names[0]] = reason
    if not any(value.ndim > 1 and name.rpartition(".")[0] != head for name, value in taken.items()):
        raise CheckpointError(_nothing_fits(own, given, arch))
    unknown = tuple(name for name in given.tensors if name not in own)
    return Fit(taken, new_layers, unknown)


def find_head(network: nn.Module, class_count: int) -> str | None:
    """Return the name of the last linear or convolutional layer if it has ``class_count`` outputs."""
    head = None
    for name, module in network.named_modules():
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if outputs is not None:
            head = name if outputs == class_count else None
    return head


def load_fit(network: nn.Module, fit: Fit) -> None:
    """Copy the tensors of ``fit`` into ``network``."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name in fit.taken:
                value.copy_(fit.taken[name])


def fit_lines(network: nn.Module, given: InitialWeights, fit: Fit) -> list[str]:
    """Return lines that say what was taken from ``given``, what was not, and why."""
    parameters = dict(network.named_parameters())
    taken = sum(value.numel() for name, value in parameters.items() if name in fit.taken)
    total = sum(value.numel() for value in parameters.values())
    lines = [
        f"starting from {given.source}: {taken:,} of {total:,} parameters taken"
        + (f"; {'; '.join(given.remarks)}" if given.remarks else "")
    ]
    if fit.new_layers:
        reasons = [f"{escaped(layer)} ({reason})" for layer, reason in fit.new_layers.items()]
        lines.append(f"new, as before any training: {join_first(reasons)}")
    if fit.unknown:
        lines.append(
            f"in the file, not in the network: {join_first([escaped(name) for name in fit.unknown])}"
        )
    return lines


def _misfit(own: dict[str, Tensor], given: dict[str, Tensor], names: Sequence[str]) -> str | None:
    """Return why the tensors ``names`` of one layer cannot be taken from ``given``, or None."""
    for name in names:
        expected, there = own[name], given.get(name)
        if there is None:
            if name.endswith(_COUNTER):
                continue
            return f"{escaped(name)} is not in the file"
        if there.shape != expected.shape:
            return f"{shape_text(there.shape)} in the file, {shape_text(expected.shape)} in the network"
        if there.layout != torch.strided or there.is_complex() or there.is_meta:
            return f"{escaped(name)} is {there.dtype}, {there.layout}"
    return None


def _class_difference(there: Sequence[str], here: Sequence[str]) -> str:
    if len(there) != len(here):
        return f"{len(there)} classes in the file, {len(here)} here"
    first, other = next((one, two) for one, two in zip(there, here, strict=True) if one != two)
    return f"other classes, such as {quote(first)} in the file and {quote(other)} here"


def _nothing_fits(own: dict[str, Tensor], given: InitialWeights, arch: str) -> str:
    def first(tensors: dict[str, Tensor]) -> str:
        shown = {name: value for name, value in tensors.items() if not name.endswith(_COUNTER)}
        return join_first([f"{escaped(name)} {shape_text(value.shape)}" for name, value in shown.items()])

    is_other = given.arch not in (None, arch)
    kind = f", a {given.arch}," if is_other else ""
    way_out = f"add --arch {given.arch}" if is_other else "give weights of the same network and input"
    return (
        f"nothing in {given.source}{kind} fits {arch}: it has {first(given.tensors)}; the network has "
        f"{first(own)}; {way_out}, or leave out --init"
    )
