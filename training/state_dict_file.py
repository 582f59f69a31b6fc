"""Reads weights that were saved elsewhere: a state dict of `torch.save`, or a .safetensors file.

No code in the file is run. Training scripts save more: the first of `_WRAPPERS` is unwrapped, averaged
weights before raw ones, and settings, the optimizer and numbers beside the weights are left out. Each such
step adds a remark. `foldserve train --init` and `foldserve export --weights` read all such files with this.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from foldserve.text import join_first, quote
from foldserve.training.errors import CheckpointError
from foldserve.training.torch_file import TorchFileError, UnplainFileError
from foldserve.training.torch_weights import Placeholder, module_state, read_torch_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

# Averaged weights first: a run that keeps both is judged by them.
_WRAPPERS = (
    *("model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model", "params_ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module"),
)
# Deepest nesting of wrappers that is followed.
_MOST_DEPTH = 5
_PARALLEL, _COMPILED = "module.", "_orig_mod."
# Counts the updates of torch's AveragedModel; no weight.
_AVERAGED_COUNT = "n_averaged"
# Far more than any network of this project; a larger file is not what was meant.
_MOST_BYTES = 8 * 1024**3


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, and remarks on how they were unwrapped.

    ``versions`` are those of the modules that saved them, by the modules' names; empty if they are not known.
    """

    tensors: dict[str, Tensor]
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)


def read_state_dict(path: Path) -> StateDict:
    """Return the state dict in ``path``, under the names in the file; every value is finite.

    Raises:
        CheckpointError: the file cannot be read, is no state dict, or holds NaN or infinite values.
    """
    remarks: list[str] = []
    versions: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            is_safetensors = _is_safetensors(file, path) or path.suffix == ".safetensors"
        if is_safetensors:
            tensors = _read_safetensors(path)
        else:
            state = _unwrap(read_torch_weights(path), path, remarks)
            tensors, versions = _tensors_of(state, path, remarks), versions_of(state)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnplainFileError as error:
        raise CheckpointError(
            f"{path} is not a state dict: it holds objects that would run code when loaded, or it is "
            "damaged; save only the state dict, with torch.save(network.state_dict(), FILE)"
        ) from error
    except TorchFileError as error:
        raise CheckpointError(
            f"{path} is not a torch file, or it is damaged or cut short: {error}"
        ) from error
    check_finite_weights(tensors, path)
    return StateDict(tensors, tuple(remarks), versions)


def check_finite_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that ``tensors``, read from ``path``, hold no NaN and no infinity.

    Raises:
        CheckpointError: one does; names the first ones.
    """
    if bad := [name for name, tensor in tensors.items() if not _is_finite(tensor)]:
        raise CheckpointError(
            f"{path}: the weights {_first(bad)} hold NaN or infinite values; take an earlier checkpoint"
        )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype not in (torch.float32, torch.float64) or not tensor.numel():
        return bool(tensor.isfinite().all())
    # Both are NaN if there is one. A tenth of the time of a truth value for each number.
    return all(math.isfinite(float(extreme)) for extreme in torch.aminmax(tensor.detach()))


def versions_of(state: Any) -> dict[str, int]:
    """Return the versions in a state dict by the names of modules; those of a file are not trusted."""
    metadata = getattr(state, "_metadata", None)
    entries = metadata.items() if isinstance(metadata, dict) else ()
    return {
        name: entry["version"]
        for name, entry in entries
        if isinstance(name, str) and isinstance(entry, dict) and type(entry.get("version")) is int
    }


def with_plain_names(state: StateDict, path: Path) -> StateDict:
    """Return ``state`` without what DataParallel and torch.compile added to the names of its weights.

    Raises:
        CheckpointError: two weights would have one name.
    """
    named: dict[str, Tensor] = {}
    removed = set()
    for name, tensor in state.tensors.items():
        if name == _AVERAGED_COUNT:
            continue
        plain = name.replace(_COMPILED, "")  # torch.compile may wrap any part of a network
        if plain != name:
            removed.add(_COMPILED)
        while plain.startswith(_PARALLEL):
            plain = plain.removeprefix(_PARALLEL)
            removed.add(_PARALLEL)
        if plain in named:
            raise CheckpointError(
                f"{path} has {quote(plain)} twice, with and without {' or '.join(sorted(removed))}; expected "
                "the weights of one network"
            )
        named[plain] = tensor
    remarks = [f"removed {prefix!r} from the names of the weights" for prefix in sorted(removed)]
    return replace(state, tensors=named, remarks=(*state.remarks, *remarks))


def _is_safetensors(file: BinaryIO, path: Path) -> bool:
    """Tell whether ``file`` begins as a safetensors file: the length of a JSON object, and its brace.

    Raises:
        CheckpointError: the file is larger than any that is read.
    """
    size = file.seek(0, io.SEEK_END)
    if size > _MOST_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes; a file of weights may have {_MOST_BYTES:,}")
    file.seek(0)
    head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415  # needed for these files alone
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return dict(load_file(path))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a number type that torch lacks
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a safetensors file, or it is damaged: {reason}") from error


def _unwrap(payload: Any, path: Path, remarks: list[str], depth: int = 0) -> Mapping[str, Any]:
    """Return the state dict in ``payload``, which may be nested in dicts or be that of a pickled module."""
    if isinstance(payload, Placeholder):
        state = module_state(payload)
        if not state:
            raise CheckpointError(f"{path} holds a {payload.kind}; expected a state dict: tensors by name")
        remarks.append(f"weights taken out of a pickled {payload.kind}, none of whose code was run")
        return state
    if not isinstance(payload, dict):
        raise CheckpointError(
            f"{path} holds a {type(payload).__name__}; expected a state dict: tensors by name"
        )
    if str(payload.get("format", "")).startswith("foldserve."):
        raise CheckpointError(
            f"{path} is a checkpoint of `foldserve train`, which contains its architecture; export it with "
            f"foldserve export {path}"
        )
    wrappers = [name for name in _WRAPPERS if _holds_weights(payload.get(name), _MOST_DEPTH - depth)]
    if wrappers:
        beside = f" rather than {', '.join(wrappers[1:])}" if len(wrappers) > 1 else ""
        remarks.append(f"weights taken from {wrappers[0]!r} in {path.name}{beside}")
        return _unwrap(payload[wrappers[0]], path, remarks, depth + 1)
    if not any(isinstance(value, torch.Tensor) for value in payload.values()):
        raise CheckpointError(
            f"{path} is not a state dict: it has {_first(payload) or 'nothing in it'}; expected tensors by "
            f"name, or such a dict under {', '.join(_WRAPPERS)}"
        )
    return payload


def _holds_weights(value: Any, depth: int) -> bool:
    """Tell whether ``value`` is a state dict or a pickled module, or a dict that wraps one."""
    if isinstance(value, Placeholder):
        return bool(module_state(value))
    if not isinstance(value, dict) or depth < 1:
        return False
    return any(isinstance(tensor, torch.Tensor) for tensor in value.values()) or any(
        _holds_weights(value.get(name), depth - 1) for name in _WRAPPERS
    )


def _tensors_of(state: Mapping[str, Any], path: Path, remarks: list[str]) -> dict[str, Tensor]:
    """Return the tensors in a state dict; numbers and texts beside them are left out, with a remark.

    Raises:
        CheckpointError: one of them is an object that may stand for a tensor, but could not be read.
    """
    others = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
    unread = {name: value.kind for name, value in others.items() if isinstance(value, Placeholder)}
    if unread:
        shown = join_first([f"{quote(str(name))} ({kind})" for name, kind in unread.items()])
        raise CheckpointError(
            f"{path}: {shown} cannot be read without running code; save plain tensors, with "
            "torch.save(network.state_dict(), FILE)"
        )
    left_out = [name for name in others if not str(name).endswith("_extra_state")]
    if left_out:
        remarks.append(f"left out {_first(left_out)} in {path.name}, which are no tensors")
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _first(names: Iterable[object]) -> str:
    return join_first([quote(str(name)) for name in names])
