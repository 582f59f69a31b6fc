"""Replaces the settings that are left to the run by what it uses, so that config.json repeats it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foldserve.training.datasets.mirroring import judge_mirroring
from foldserve.training.datasets.registry import DATASETS
from foldserve.training.engine.precision import choose_precision
from foldserve.training.engine.pruning import kept_count
from foldserve.training.folder_recipe import choose_arch, choose_settings
from foldserve.training.run.chosen_augmentation import chosen_border
from foldserve.training.run.messages import report_imbalance

if TYPE_CHECKING:
    import torch

    from foldserve.terminal import Terminal
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset, Examples
    from foldserve.training.run.initial_weights import InitialWeights


def complete_settings(
    config: TrainConfig,
    dataset: Dataset,
    training: Examples,
    validation_count: int,
    *,
    device: torch.device,
    terminal: Terminal,
) -> TrainConfig:
    """Return ``config`` with nothing left open, and say what was chosen for a folder of images."""
    if dataset.is_folder:
        config = _fit_to_folder(config, dataset, training, terminal)
    height, width = dataset.image.height, dataset.image.width
    is_resized = dataset.is_folder and height == width
    # With groups, the count that was held out is not the one to ask for.
    is_counted = dataset.validation is None and dataset.train_groups is None
    return config.model_copy(
        update={
            "precision": choose_precision(config, device).name,
            "flip": dataset.flip_keeps_class if config.flip is None else config.flip,
            "border": chosen_border(config, dataset),
            "image_size": height if is_resized and config.image_size is None else config.image_size,
            "validation_count": validation_count if is_counted else config.validation_count,
        }
    )


def follow_weights(config: TrainConfig, given: InitialWeights, terminal: Terminal) -> TrainConfig:
    """Return ``config`` with the network and the input that ``given`` fit, and say so.

    Only for a folder of images and if no network is asked for: the recipe of a named data set has one.
    """
    if config.dataset in DATASETS or "arch" in config.given:
        return config
    used = {name: value for name, value in given.settings.items() if name not in config.given}
    if used:
        terminal.say(f"as {given.source} has it: {_listed(used)}")
    return config.with_given(used)


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in settings.items())


def _fit_to_folder(
    config: TrainConfig, dataset: Dataset, training: Examples, terminal: Terminal
) -> TrainConfig:
    """Return ``config`` with the settings of `foldserve.training.folder_recipe` where none are given."""
    side = min(dataset.image.height, dataset.image.width)
    arch = config.arch
    if "arch" not in config.given:
        arch = choose_arch(len(training), side, is_grey=dataset.image.channels == 1)
    if "prune_images" not in config.given:  # the recipe's is for many images
        config = config.model_copy(update={"prune_images": 0.0})
    per_epoch = kept_count(len(training), config.prune_images)
    chosen = choose_settings(
        arch,
        config.recipe,
        len(training),
        side,
        batch_size=config.batch_size if "batch_size" in config.given else None,
        epochs=config.epochs if "epochs" in config.given else None,
        images_per_epoch=per_epoch,
    )
    used = {name: value for name, value in chosen.items() if name not in config.given}
    if "auto_augment" in config.given:  # what a person asks for is done, however short the run is
        used.pop("auto_augment_steps", None)
    if config.flip is None and config.augment:
        mirroring = judge_mirroring(training)
        used["flip"] = mirroring.keeps_class
        if not mirroring.keeps_class:
            terminal.say(
                "images are not mirrored: the nearest other image is of the same class for "
                f"{mirroring.accuracy:.0%} of them, and for {mirroring.mirrored_accuracy:.0%} of their "
                "mirror images (--flip mirrors them anyway)"
            )
    if used:
        config = config.model_copy(update=used)
        steps = config.epochs * max(1, per_epoch // config.batch_size)
        terminal.say(
            f"chosen for {len(training):,} images of {side} pixels: {_listed(used)}; {steps:,} steps"
        )
    report_imbalance(config, training, terminal)
    return config
