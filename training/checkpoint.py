"""What a training run leaves on disk: weights and every fact needed to use or continue them.

A checkpoint is one ``torch.save`` file of plain types and tensors, so that it loads with
``weights_only=True`` and can run no code. It is written to a sibling, synced and renamed: a reader never sees
half of one.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from foldserve.imaging import ImageSpec
from foldserve.text import escaped
from foldserve.training.checkpoint_form import CheckpointForm, read_form
from foldserve.training.errors import CheckpointError
from foldserve.training.models import Normalized, create_model, is_import_path
from foldserve.training.torch_file import TorchFileError, read_torch_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

SCHEMA_VERSION = 1

BEST_FILE = "best.pt"
LAST_FILE = "last.pt"

_FORMAT = "foldserve.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Weights with the facts that belong to them.

    ``arch_args`` are all arguments of `create_model` (input size and class count among them);
    ``mean`` and ``std`` are per channel, on pixels scaled to 0..1; ``ema_weights`` is None where no average
    was kept; ``trainer`` is what a run needs to go on, and None in a checkpoint that is only to be used;
    ``fingerprint`` is that of the data set (`foldserve.training.datasets.Dataset`).
    """

    arch: str
    arch_args: dict[str, Any]
    image: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    dataset: str
    metrics: dict[str, Any]
    weights: dict[str, Tensor]
    ema_weights: dict[str, Tensor] | None = None
    trainer: dict[str, Any] | None = None
    fingerprint: str = ""

    @property
    def weights_kind(self) -> Literal["ema", "raw"]:
        """Which weights `build` takes: the averaged ones where they were kept."""
        return "raw" if self.ema_weights is None else "ema"

    def build(self) -> Normalized:
        """Return the network with the weights to serve, from pixels to logits, on the CPU and in eval mode.

        Raises:
            CheckpointError: the weights do not fit the architecture.
        """
        weights = self.weights if self.ema_weights is None else self.ema_weights
        try:
            if not is_import_path(self.arch):
                # Without memory first: a number that is wrong may ask for more than there is.
                with torch.device("meta"):
                    check_weights(create_model(self.arch, **self.arch_args), weights)
            network = create_model(self.arch, **self.arch_args)
            check_weights(network, weights)
            network.load_state_dict(weights)
            return Normalized(network, self.mean, self.std).eval()
        except Exception as error:  # arguments from a file lead a network to any kind of error
            reason = " ".join(str(error).split()) or type(error).__name__
            message = f"the checkpoint's weights do not make a {self.arch}: {reason}"
            raise CheckpointError(escaped(message)) from error


def check_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Check that ``weights`` are those of ``network``: names, shapes and types of number.

    Raises:
        CheckpointError: they are not.
    """
    own = network.state_dict()
    if missing := [name for name in own if name not in weights]:
        raise CheckpointError(f"{len(missing)} weights are missing, as {missing[0]}")
    if more := [name for name in weights if name not in own]:
        raise CheckpointError(f"{len(more)} weights are not in the network, as {more[0]!r}")
    for name, expected in own.items():
        there = weights[name]
        if there.shape != expected.shape:
            raise CheckpointError(
                f"size mismatch: {name} is {list(there.shape)} there, {list(expected.shape)} in the network"
            )
        if there.dtype != expected.dtype or there.layout != torch.strided or there.is_meta:
            raise CheckpointError(
                f"{name} is of {there.dtype}, {there.layout}, {there.device} there; expected {expected.dtype}"
            )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``, which holds the old content or the new one, whole, at every moment.

    Raises:
        OSError: the folder cannot be written.
    """
    # asdict would copy every tensor
    payload = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    payload |= {"format": _FORMAT, "schema": SCHEMA_VERSION, "image": asdict(checkpoint.image)}
    sibling = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with sibling.open("wb") as stream:
            torch.save(payload, stream)
            stream.flush()
            os.fsync(stream.fileno())
        sibling.replace(path)
    except RuntimeError as error:  # torch's zip writer reports a full disk so
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        sibling.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, its tensors on the CPU; a run's folder means its ``best.pt``.

    Raises:
        CheckpointError: missing, not a checkpoint, damaged, or of a future schema.
    """
    file = path / BEST_FILE if path.is_dir() else path
    payload = _read_payload(file)
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise CheckpointError(f"{file} is a torch file, but not a checkpoint written by `foldserve train`")
    schema = payload.get("schema")
    if not isinstance(schema, int):
        raise CheckpointError(f"{file} is malformed: its schema is a {type(schema).__name__}, no number")
    if schema != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file} has schema {schema}; this foldserve reads {SCHEMA_VERSION}: upgrade it"
        )
    try:
        fields = read_form(CheckpointForm, payload)
        return Checkpoint(**fields | {"image": ImageSpec(**fields["image"].model_dump())})
    except ValueError as error:
        raise CheckpointError(f"{file} is malformed: {escaped(str(error))}") from error


def _read_payload(file: Path) -> Any:
    try:
        return read_torch_file(file)
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist; expected a checkpoint or the --run-dir of `foldserve train`"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except TorchFileError as error:
        raise CheckpointError(
            f"{file} is not a checkpoint, or it is damaged or cut short: {error}"
        ) from error
