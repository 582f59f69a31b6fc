"""Chooses the settings of a run on a folder of images by what is in it, for all that the user did not give.

The rule, which docs/training.md states too, with N training images:

network      lenet for 20,000 grey images or more of at most 32 pixels, where it is nearly as good and several
             times as fast; else resnet, whose layers do not grow with the image
input        the images' own size if it is the same for all and suits the network; else by the median of their
             shorter sides, see `choose_side`
batch size   32 below 4,000 images, 64 below 20,000, else 128; halved until it is at most half of them
steps        at least 4,000 and at least the epochs of the network's recipe, but at most 600 epochs
rate         0.02 for 32 images per step, and in proportion; gradients are clipped, as few images are noisy
augmentation a crop from a border of 1/16 of the side, mirroring unless mirrored images look like others', and
             below 20,000 images TrivialAugment, as each image comes back many times: not in runs that are
             shorter than the rule's, which it only slows down
regularising label smoothing 0.05, dropout 0.2 in lenet and alexnet
epoch        the last within one standard error of the best in validation

The recipe "long" takes three times the steps, and an average of the weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from foldserve.training.recipes import RecipeName, recipe_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_STEPS = 4000
MOST_EPOCHS = 600
_MANY_IMAGES = 20_000
_RATE_PER_IMAGE = 0.02 / 32
_USUAL_SIDE = 224
_SMALL_SIDE = 32
# For each network: the sides between which images keep their size; a side for medians below each bound.
# lenet's and alexnet's linear layers grow with the image. resnet has a stem for up to 64 pixels that keeps
# the resolution, and another that quarters it: 96 pixels take less time than 48; 64 take four times as long
# as 32.
_OWN_SIDES = {"lenet": (28, 64), "alexnet": (28, 64), "resnet": (16, 48)}
_SIDES: dict[str, list[tuple[float, int]]] = {
    "lenet": [(48, 32), (math.inf, 64)],
    "alexnet": [(48, 32), (math.inf, 64)],
    "resnet": [(48, 32), (112, 96), (math.inf, 128)],
}


def choose_arch(count: int, median_side: int, *, is_grey: bool) -> str:
    """Return the network for ``count`` training images whose shorter side is ``median_side`` pixels."""
    return "lenet" if is_grey and count >= _MANY_IMAGES and median_side <= _SMALL_SIDE else "resnet"


def needs_same_side(arch: str) -> bool:
    """Tell whether weights of ``arch`` may fit images of one size only, as those of linear layers do."""
    return arch != "resnet"


def choose_side(arch: str, sizes: Sequence[tuple[int, int]]) -> int | None:
    """Return the side of the input of ``arch`` for images of ``sizes`` (height, width); None for their own.

    ``sizes`` has one entry per image. Networks of the user's own get the images' size, or 224 pixels.
    """
    is_one_size = len(set(sizes)) == 1
    if arch not in _SIDES:
        return None if is_one_size else _USUAL_SIDE
    least, most = _OWN_SIDES[arch]
    if is_one_size and min(sizes[0]) >= least and max(sizes[0]) <= most:
        return None
    median = median_side(sizes)
    return next(side for bound, side in _SIDES[arch] if median < bound)


def median_side(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the median of the shorter sides."""
    return sorted(min(size) for size in sizes)[len(sizes) // 2]


def choose_settings(
    arch: str,
    recipe: RecipeName,
    count: int,
    side: int,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    images_per_epoch: int | None = None,
) -> dict[str, Any]:
    """Return the settings for ``count`` training images and an input of ``side`` pixels, by field.

    ``batch_size`` and ``epochs`` are those that were given, if they were; ``images_per_epoch`` is for epochs
    that leave images out.
    """
    usual = 32 if count < 4000 else 64 if count < _MANY_IMAGES else 128
    while usual > max(2, count // 2):
        usual //= 2
    batch_size = batch_size or usual
    steps_per_epoch = max(1, (images_per_epoch or count) // batch_size)
    longer = 3 if recipe == "long" else 1
    least = -(-longer * LEAST_STEPS // steps_per_epoch)
    usual_recipe = recipe_settings(arch, "default")
    # Of all images.
    usual_epochs = round(usual_recipe.get("epochs", 12) * (1 - usual_recipe.get("prune_images", 0.0)))
    enough = max(longer * usual_epochs, min(least, longer * MOST_EPOCHS))
    is_short = epochs is not None and epochs < enough
    auto_augment = "trivial" if count < _MANY_IMAGES and not is_short else "none"
    return {
        "arch": arch,
        "batch_size": batch_size,
        "epochs": epochs or enough,
        "optimizer": "sgd",
        "lr": round(_RATE_PER_IMAGE * batch_size, 6),
        "warmup": 0.1,
        "weight_decay": 5e-4,
        "clip_norm": 2.0,
        "label_smoothing": 0.05,
        "ema_decay": 0.999 if recipe == "long" else 0.0,
        "augment_until": 1.0,
        "auto_augment": auto_augment,
        "auto_augment_steps": enough * steps_per_epoch // 2 if auto_augment == "trivial" else 0,
        "crop_padding": max(1, side // 16),
        "dropout": 0.2 if arch in ("lenet", "alexnet") else 0.0,
        "select_within": 1.0,
    }
