"""Saves and loads checkpoints: weights with all that is needed to use them or to resume their run.

A checkpoint is one ``torch.save`` file of plain types and tensors, so that it loads with
``weights_only=True`` and cannot run code. It is written to a temporary file, synced and renamed, so that a
reader never sees a partial one.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from foldserve.imaging import ImageSpec
from foldserve.replacing import replacing
from foldserve.text import escaped
from foldserve.training.checkpoint_form import CheckpointForm, read_form
from foldserve.training.errors import CheckpointError
from foldserve.training.models import Normalized, create_model, is_import_path
from foldserve.training.torch_file import TorchFileError, UnplainFileError, read_torch_file

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA_VERSION = 1

BEST_FILE = "best.pt"
LAST_FILE = "last.pt"

_FORMAT = "foldserve.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Weights and their metadata.

    ``arch_args`` are all arguments of `create_model`, among them input size and class count. ``mean`` and
    ``std`` are per channel, on pixels scaled to 0..1. ``ema_weights`` is None if no average was kept.
    ``trainer`` is the state that resumes the run, and None in a checkpoint that cannot be resumed.
    ``fingerprint`` is that of the data set (`foldserve.training.datasets.Dataset`); ``group_by`` is what
    images were kept together by in splits, or ""; ``path_column`` and ``label_column`` are the columns of its
    tables, if they were given.
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
    group_by: str = ""
    path_column: str = ""
    label_column: str = ""

    @property
    def dataset_name(self) -> str:
        """The data set without the folders that it lies in; the names of its tables, if it is several."""
        return ",".join(Path(part).name for part in self.dataset.split(","))

    @property
    def weights_kind(self) -> Literal["ema", "raw"]:
        """Which weights `build` takes: the averaged ones if there are any."""
        return "raw" if self.ema_weights is None else "ema"

    def build(self) -> Normalized:
        """Build the network with the weights to serve: from pixels to logits, on the CPU and in eval mode.

        Raises:
            CheckpointError: the weights do not fit the architecture.
        """
        weights = self.weights if self.ema_weights is None else self.ema_weights
        try:
            if not is_import_path(self.arch):
                # On the meta device first: a wrong number in the file may ask for more memory than there is.
                with torch.device("meta"):
                    check_weights(create_model(self.arch, **self.arch_args), weights)
            network = create_model(self.arch, **self.arch_args)
            check_weights(network, weights)
            network.load_state_dict(weights)
            return Normalized(network, self.mean, self.std).eval()
        except Exception as error:  # a network given wrong arguments may raise any error
            reason = " ".join(str(error).split()) or type(error).__name__
            message = f"the checkpoint's weights do not make a {self.arch}: {reason}"
            raise CheckpointError(escaped(message)) from error


def check_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Check that ``weights`` have the names, shapes and dtypes that ``network`` has.

    Raises:
        CheckpointError: they are not.
    """
    own = network.state_dict()
    if missing := [name for name in own if name not in weights]:
        raise CheckpointError(f"{len(missing)} weights are missing, such as {missing[0]}")
    if more := [name for name in weights if name not in own]:
        raise CheckpointError(f"{len(more)} weights are not in the network, such as {more[0]!r}")
    for name, expected in own.items():
        there = weights[name]
        if there.shape != expected.shape:
            raise CheckpointError(
                f"size mismatch: {name} is {list(there.shape)} in the file, expected {list(expected.shape)}"
            )
        if there.dtype != expected.dtype or there.layout != torch.strided or there.is_meta:
            raise CheckpointError(
                f"{name} is {there.dtype}, {there.layout}, {there.device}; expected dense {expected.dtype}"
            )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path`` atomically: the file always has the old content or the new one.

    Raises:
        OSError: the folder cannot be written.
    """
    # Not asdict, which would copy every tensor.
    payload = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    payload |= {"format": _FORMAT, "schema": SCHEMA_VERSION, "image": asdict(checkpoint.image)}
    try:
        with replacing(path) as beside, beside.open("wb") as stream:
            torch.save(payload, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # torch's zip writer raises it if the disk is full
        raise OSError(f"{path} cannot be written: {error}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint with its tensors on the CPU; if ``path`` is a folder, its ``best.pt``.

    Raises:
        CheckpointError: the file is missing, not a checkpoint, damaged, or of a newer schema.
    """
    file = path / BEST_FILE if path.is_dir() else path
    payload = _read_payload(file)
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise CheckpointError(f"{file} is a torch file, but not a checkpoint written by `foldserve train`")
    schema = payload.get("schema")
    if not isinstance(schema, int):
        raise CheckpointError(f"{file} is malformed: its schema is a {type(schema).__name__}, not a number")
    if schema != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file} has schema {schema}, but this foldserve reads {SCHEMA_VERSION}; upgrade foldserve"
        )
    try:
        fields = read_form(CheckpointForm, payload)
        return Checkpoint(**fields | {"image": ImageSpec(**fields["image"].model_dump())})
    except ValueError as error:
        raise CheckpointError(f"{file} is malformed: {escaped(str(error))}") from error


def is_checkpoint(path: Path) -> bool:
    """Return whether `save_checkpoint` wrote ``path``; False for any other file or a damaged one."""
    try:
        payload = None if path.suffix == ".safetensors" else read_torch_file(path)
    except (OSError, TorchFileError):
        return False
    return isinstance(payload, dict) and payload.get("format") == _FORMAT


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
        reason = str(error)
        if isinstance(error, UnplainFileError):
            # PyTorch's own words advise to run the code, with marks for a terminal.
            reason = "it holds objects that would run code when loaded, such as a whole network"
        raise CheckpointError(
            f"{file} is not a checkpoint, or it is damaged or cut short: {reason}"
        ) from error
