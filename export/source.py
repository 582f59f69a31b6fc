"""What is exported: the network, what must be known about it, and images to prove it with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from export.errors import SourceError
from serving.artifact import ModelMetadata
from training.checkpoint import Checkpoint, load_checkpoint
from training.datasets import load_dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.config import ExportConfig
    from training.models import Normalized

FULL_PROOF_SIDE = 64  # pixels; up to here all test images are compared
LARGE_PROOF_COUNT = 1000


@dataclass(frozen=True)
class ProofImages:
    """Images uint8 [N, C, H, W] that both networks answer; class indices int64 [N] where known."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    synthetic: bool
    origin: str


@dataclass(frozen=True)
class Source:
    """``module`` takes uint8 pixels and answers logits; ``facts`` go into the manifest as they are."""

    module: Normalized
    metadata: ModelMetadata
    proof: ProofImages
    suggested_name: str
    facts: dict[str, Any]


def load_source(config: ExportConfig) -> Source:
    """Load what ``config.source`` names.

    Raises:
        SourceError: it cannot be exported, or its weights are not finite.
        CheckpointError: not a checkpoint, damaged, or its weights do not fit its architecture.
        DatasetError: the data set it was trained on cannot be found or read.
    """
    if config.source.suffix == ".onnx":
        raise SourceError(
            f"{config.source} is an ONNX file; this version exports runs and checkpoints of `foldserve train`"
        )
    checkpoint = load_checkpoint(config.source)
    module = checkpoint.build()
    _check_finite(module, config.source)
    if len(checkpoint.mean) != checkpoint.image.channels:
        raise SourceError(
            f"{config.source} has {len(checkpoint.mean)} means for {checkpoint.image.channels} channels; "
            "expected one each"
        )
    return Source(
        module=module,
        metadata=_metadata(checkpoint),
        proof=_proof_images(checkpoint, config),
        suggested_name=_suggested_name(config.source, checkpoint),
        facts={
            "architecture": checkpoint.arch,
            "architecture_arguments": checkpoint.arch_args,
            "weights": checkpoint.weights_kind,
            "dataset": _shown_dataset(checkpoint),
            "training_metrics": _plain(checkpoint.metrics),
        },
    )


def tool_version(package: str) -> str:
    """Return the installed version of ``package``; "unknown" where it runs without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _metadata(checkpoint: Checkpoint) -> ModelMetadata:
    provenance = {
        "architecture": checkpoint.arch,
        "dataset": _shown_dataset(checkpoint),
        "weights": checkpoint.weights_kind,
        "foldserve": tool_version("foldserve"),
    }
    return ModelMetadata(checkpoint.labels, checkpoint.mean, checkpoint.std, checkpoint.image, provenance)


def _proof_images(checkpoint: Checkpoint, config: ExportConfig) -> ProofImages:
    # What could not be read was left out of the training, or there would be no checkpoint.
    dataset = load_dataset(checkpoint.dataset, config.data_dir, image=checkpoint.image, skip_unreadable=True)
    shape = tuple(dataset.test_images.shape[1:])
    if shape != checkpoint.image.shape:
        raise SourceError(
            f"{checkpoint.dataset}'s images are {list(shape)}, the checkpoint takes "
            f"{list(checkpoint.image.shape)}"
        )
    count = len(dataset.test_images)
    if config.verify_images is not None:
        count = min(count, config.verify_images)
    elif max(shape[1:]) > FULL_PROOF_SIDE:
        count = min(count, LARGE_PROOF_COUNT)
    # Spread evenly: a folder's images stand class by class, and the first thousand may be of one class alone.
    chosen = np.linspace(0, len(dataset.test_images) - 1, count).round().astype(np.int64)
    return ProofImages(
        images=dataset.test_images.numpy()[chosen],
        labels=dataset.test_labels.numpy()[chosen],
        synthetic=False,
        origin=f"{_shown_dataset(checkpoint)} test images",
    )


def _shown_dataset(checkpoint: Checkpoint) -> str:
    """Return the data set's name; of a folder the last part alone, since no path belongs into an artifact."""
    return Path(checkpoint.dataset).name


def _check_finite(module: Normalized, source: Path) -> None:
    for name, tensor in module.network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise SourceError(
                f"{source}: the weights {name} hold NaN or infinite values; the training has diverged"
            )


def _suggested_name(source: Path, checkpoint: Checkpoint) -> str:
    folder = source if source.is_dir() else source.parent
    return folder.resolve().name or checkpoint.arch


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: the metrics of a run may hold tuples, paths and tensors."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
