"""What a training run leaves on disk: weights and every fact needed to use or continue them.

A checkpoint is one ``torch.save`` file of plain types and tensors, so that it loads with
``weights_only=True`` and can run no code. It is written to a sibling, synced and renamed: a reader never sees
half of one.
"""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from imaging import ImageSpec
from training.errors import CheckpointError, ModelError
from training.models import Normalized, create_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SCHEMA_VERSION = 1

BEST_FILE = "best.pt"
LAST_FILE = "last.pt"

_FORMAT = "foldserve.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Weights with the facts that belong to them.

    ``arch_args`` are all arguments of `training.models.create_model` (input size and class count among them);
    ``mean`` and ``std`` are per channel, on pixels scaled to 0..1; ``ema_weights`` is None where no average
    was kept; ``trainer`` is what a run needs to go on, and None in a checkpoint that is only to be used.
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
            network = create_model(self.arch, **self.arch_args)
            network.load_state_dict(weights)
            return Normalized(network, self.mean, self.std).eval()
        except (ModelError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint's weights do not make a {self.arch}: {reason}") from error


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
    if payload.get("schema") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file} has schema {payload.get('schema')}; this foldserve reads {SCHEMA_VERSION}: upgrade it"
        )
    try:
        image = ImageSpec(**payload["image"])
        fields = {name: payload[name] for name in Checkpoint.__dataclass_fields__}
        return Checkpoint(**fields | {"image": image})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is malformed: {type(error).__name__}: {error}") from error


def _read_payload(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of other kinds of pickle before it refuses them; the error below says it all.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist; expected a checkpoint or the --run-dir of `foldserve train`"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{file} is not a checkpoint, or it is damaged or cut short: {reason}"
        ) from error
