"""Loads a run or checkpoint of ``foldserve train`` as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foldserve.artifact.format import ModelMetadata
from foldserve.export.errors import SourceError
from foldserve.export.sources.file_kind import refuse_other_kinds
from foldserve.export.sources.final_softmax import leave_out_softmax
from foldserve.export.sources.source import Source, VerificationImages, tool_version
from foldserve.export.sources.torch_network import TorchNetwork
from foldserve.export.sources.trained_images import load_trained_images, validation_images
from foldserve.export.sources.verification_images import image_count, spread
from foldserve.export.verification.probabilities import TAKEN_AS_LOGITS
from foldserve.training.chance import chance_warning
from foldserve.training.checkpoint import Checkpoint, is_checkpoint, load_checkpoint
from foldserve.training.errors import CheckpointError
from foldserve.training.models import register_custom_model

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.export.config import ExportConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.models import Normalized


def load_run(config: ExportConfig, path: Path) -> Source:
    """Load a run's best checkpoint, or a checkpoint file.

    Raises:
        SourceError: it cannot be exported, or its weights are not finite.
        CheckpointError: it is not a checkpoint, is damaged, or its weights do not fit its architecture.
        DatasetError: the data set it was trained on cannot be found or read.
    """
    if config.arch is not None:
        register_custom_model(config.arch)
    checkpoint = read_checkpoint(path)
    if config.arch not in {None, checkpoint.arch}:
        raise SourceError(f"--arch {config.arch}: {path} is of architecture {checkpoint.arch}")
    module = checkpoint.build()
    _check_finite(module, path)
    ending = (TAKEN_AS_LOGITS,) if config.as_logits else leave_out_softmax(module, checkpoint.image.shape)
    dataset, left_out = load_trained_images(checkpoint, config.data_dir)
    verification = _test_images(checkpoint, dataset, config)
    warning = chance_warning(checkpoint.metrics)
    remarks = (*ending, *left_out, *([warning] if warning else []))
    return Source(
        network=TorchNetwork(module, checkpoint.image.shape),
        metadata=_metadata(checkpoint),
        verification=verification,
        suggested_name=_suggested_name(path, checkpoint),
        facts={
            "run": _suggested_name(path, checkpoint),
            "architecture": checkpoint.arch,
            "architecture_arguments": checkpoint.arch_args,
            "weights": checkpoint.weights_kind,
            "dataset": _shown_dataset(checkpoint),
            "training_metrics": _plain(checkpoint.metrics),
            "remarks": list(remarks),
        },
        summary=f"{checkpoint.arch} trained on {_shown_dataset(checkpoint)}, "
        f"{checkpoint.weights_kind} weights",
        remarks=remarks,
        validation=validation_images(dataset, checkpoint, path),
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a run's best checkpoint, or a checkpoint file; for other files, tell how to export what they hold.

    Raises:
        SourceError: it is of a known other kind.
        CheckpointError: it is not a checkpoint, or it is damaged.
    """
    refuse_other_kinds(path)
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        if not path.is_file() or is_checkpoint(path):
            raise
        raise CheckpointError(
            f"{error}; export a network made elsewhere with --arch MODULE:FACTORY --weights {path}, or "
            "convert it to ONNX and export that file"
        ) from error


def _metadata(checkpoint: Checkpoint) -> ModelMetadata:
    provenance = {
        "architecture": checkpoint.arch,
        "dataset": _shown_dataset(checkpoint),
        "weights": checkpoint.weights_kind,
        "foldserve": tool_version("foldserve"),
    }
    return ModelMetadata(checkpoint.labels, checkpoint.mean, checkpoint.std, checkpoint.image, provenance)


def _test_images(checkpoint: Checkpoint, dataset: Dataset, config: ExportConfig) -> VerificationImages:
    count = image_count(len(dataset.test_images), checkpoint.image, config.verify_images)
    # Spread evenly: a folder's images are sorted by class, so the first thousand may be of one class.
    chosen = spread(len(dataset.test_images), count)
    return VerificationImages(
        images=dataset.test_images.numpy()[chosen],
        labels=dataset.test_labels.numpy()[chosen],
        synthetic=False,
        origin=f"test images of {_shown_dataset(checkpoint)}",
    )


def _shown_dataset(checkpoint: Checkpoint) -> str:
    """Return the data set's name; only the last part of a folder, since artifacts must not contain paths."""
    return checkpoint.dataset_name


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
    """Convert ``value`` to JSON types: the metrics of a run may hold tuples, paths and tensors."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
