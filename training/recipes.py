"""Defines the training recipe of each network, as differences from the defaults of `TrainConfig`.

A setting given on the command line overrides the recipe. "default" takes minutes on two cores; "long" reaches
the network's best accuracy, however long it takes. A setting that is newer than runs that may go on has in
`TrainConfig` the default of what they did, and its value here.
"""

from __future__ import annotations

from typing import Any, Literal

RecipeName = Literal["default", "long"]

# Data sets with recipes of their own; the settings of folders are chosen by what is in them.
NAMED_DATASETS = frozenset({"fashion-mnist", "mnist", "cifar10"})

# The settings that a run on a folder of images chooses by what is in it.
RULE_FIELDS = frozenset(
    {
        "arch",
        "epochs",
        "batch_size",
        "prune_images",
        "optimizer",
        "lr",
        "warmup",
        "weight_decay",
        "clip_norm",
        "label_smoothing",
        "ema_decay",
        "augment_until",
        "auto_augment",
        "auto_augment_steps",
        "crop_padding",
        "dropout",
        "select_within",
    }
)

# The settings that a run on a folder of images takes from the run that --init names.
INITIAL_FIELDS = frozenset({"arch", "image_size", "width", "batch_norm", "activation"})

RECIPES: dict[str, dict[RecipeName, dict[str, Any]]] = {
    "lenet": {
        # Augmentation slows down a short run, and without it a network knows the images by heart: it ends
        # before the rate is low.
        "default": {"epochs": 14, "augment_until": 0.7},
        # Four times the epochs can use a wider crop, an average of the weights, and label smoothing. Without
        # the latter, the loss in validation rises in a last fifth that is not augmented.
        "long": {
            "epochs": 56,
            "augment_until": 0.8,
            "label_smoothing": 0.1,
            "crop_padding": 2,
            "ema_decay": 0.999,
        },
    },
    "alexnet": {
        # As many steps as 11 epochs of all images have.
        "default": {
            "epochs": 17,
            "prune_images": 0.35,
            "augment_until": 0.7,
            "dropout": 0.1,
            "label_smoothing": 0.05,
        },
        # More channels, and the regularisation that keeps so many epochs from overfitting.
        "long": {
            "epochs": 70,
            "prune_images": 0.35,
            "augment_until": 0.8,
            "width": 1.5,
            "warmup": 0.1,
            "dropout": 0.2,
            "label_smoothing": 0.1,
            "ema_decay": 0.999,
        },
    },
    "resnet": {
        "default": {"epochs": 8, "label_smoothing": 0.05},
        "long": {
            "epochs": 45,
            "warmup": 0.1,
            "label_smoothing": 0.1,
            "crop_padding": 2,
            "erase_probability": 0.25,
            "ema_decay": 0.999,
        },
    },
}
# For custom networks: gradients are clipped, since nobody has tried this learning rate on them.
_CUSTOM: dict[RecipeName, dict[str, Any]] = {
    "default": {"lr": 0.05, "clip_norm": 5.0},
    "long": {"epochs": 60, "lr": 0.05, "clip_norm": 5.0, "crop_padding": 2, "ema_decay": 0.999},
}


def recipe_settings(arch: str, recipe: RecipeName) -> dict[str, Any]:
    """Return the settings of ``arch``'s ``recipe`` that differ from the defaults."""
    return dict(RECIPES.get(arch, _CUSTOM)[recipe])
