"""The flags of training reach the augmentation of its steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foldserve.training.augmentation.color_jitter import ColorJitter
from foldserve.training.augmentation.random_policy import RandomPolicy
from foldserve.training.config import TrainConfig
from foldserve.training.run.chosen_augmentation import chosen_augmentation


@pytest.mark.parametrize(
    ("settings", "policy", "jitter"),
    [
        ({}, None, None),
        ({"auto_augment": "trivial"}, RandomPolicy(1, None), None),
        ({"auto_augment": "rand", "rand_magnitude": 5}, RandomPolicy(2, 5), None),
        ({"auto_augment": "rand", "border": "black"}, RandomPolicy(2, 9, "black"), None),
        ({"color_jitter": 0.4}, None, ColorJitter(0.4, 0.4, 0.4, 0.0)),
        ({"hue_jitter": 0.1}, None, ColorJitter(0.0, 0.0, 0.0, 0.1)),
    ],
)
def test_flags_choose_policy_and_jitter(tiny_config, tiny, settings, policy, jitter) -> None:
    config = TrainConfig.model_validate(tiny_config.model_dump() | {"augment": True} | settings)
    chosen = chosen_augmentation(config, tiny)
    assert (chosen.policy, chosen.jitter) == (policy, jitter)
    images = torch.randint(0, 256, (8, 1, 12, 12), dtype=torch.uint8)
    augmented = chosen(images, torch.Generator().manual_seed(1))
    assert augmented.dtype == torch.uint8
    off = TrainConfig.model_validate(config.model_dump() | {"augment": False})
    assert torch.equal(chosen_augmentation(off, tiny)(images, torch.Generator()), images)


@pytest.mark.parametrize(
    ("settings", "is_on_black", "border"),
    [
        ({}, False, "mirror"),
        ({}, True, "black"),
        ({"border": "mirror"}, True, "mirror"),
        ({"border": "black"}, False, "black"),
    ],
)
def test_the_border_is_that_of_the_images_unless_it_is_given(
    tiny_config, tiny, settings, is_on_black, border
) -> None:
    config = TrainConfig.model_validate(
        tiny_config.model_dump() | {"augment": True, "auto_augment": "trivial"} | settings
    )
    chosen = chosen_augmentation(config, replace(tiny, is_on_black=is_on_black))
    assert chosen.policy is not None
    assert (chosen.border, chosen.policy.border) == (border, border)
