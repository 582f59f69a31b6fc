"""Chooses the augmentation and the mixing of images that a run's settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.training.augmentation.augment import NO_AUGMENTATION, Augmentation
from foldserve.training.augmentation.color_jitter import ColorJitter
from foldserve.training.augmentation.mixing import Mixing
from foldserve.training.augmentation.random_policy import RandomPolicy

if TYPE_CHECKING:
    from foldserve.training.augmentation.border import Border
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset


def chosen_augmentation(config: TrainConfig, dataset: Dataset) -> Augmentation:
    """Return the augmentation of single images of ``dataset`` that ``config`` asks for."""
    if not config.augment:
        return NO_AUGMENTATION
    border = chosen_border(config, dataset)
    return Augmentation(
        crop_padding=config.crop_padding,
        flip=dataset.flip_keeps_class if config.flip is None else config.flip,
        erase_probability=config.erase_probability,
        smallest_crop=config.smallest_crop,
        policy=_chosen_policy(config, border),
        jitter=_chosen_jitter(config),
        border=border,
    )


def chosen_border(config: TrainConfig, dataset: Dataset) -> Border:
    """Return what crops and moves of ``dataset``'s images show of beyond them."""
    return config.border or ("black" if dataset.is_on_black else "mirror")


def _chosen_policy(config: TrainConfig, border: Border) -> RandomPolicy | None:
    if config.auto_augment == "none":
        return None
    if config.auto_augment == "trivial":
        return RandomPolicy(border=border)
    return RandomPolicy(config.rand_operations, config.rand_magnitude, border)


def _chosen_jitter(config: TrainConfig) -> ColorJitter | None:
    strength, hue = config.color_jitter, config.hue_jitter
    return ColorJitter(strength, strength, strength, hue) if strength or hue else None


def chosen_mixing(config: TrainConfig, dataset: Dataset) -> Mixing:
    """Return the mixing of pairs of images of ``dataset`` that ``config`` asks for."""
    mixup, cutmix = (config.mixup, config.cutmix) if config.augment else (0.0, 0.0)
    return Mixing(mixup, cutmix, len(dataset.labels))
