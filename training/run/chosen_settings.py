"""Replaces the settings that are left to the run by what it uses, so that config.json repeats it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.training.engine.precision import choose_precision

if TYPE_CHECKING:
    import torch

    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset, Examples


def complete_settings(
    config: TrainConfig, dataset: Dataset, validation: Examples, device: torch.device
) -> TrainConfig:
    """Return ``config`` with nothing left open: precision, mirroring, validation images and size."""
    height, width = dataset.image.height, dataset.image.width
    is_resized = bool(dataset.fingerprint) and height == width
    return config.model_copy(
        update={
            "precision": choose_precision(config, device).name,
            "flip": dataset.flip_keeps_class if config.flip is None else config.flip,
            "image_size": height if is_resized and config.image_size is None else config.image_size,
            "validation_count": len(validation) if dataset.validation is None else None,
        }
    )
