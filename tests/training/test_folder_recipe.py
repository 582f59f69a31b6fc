"""The rule for folders of images, and what tells whether a network learnt anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.chance import chance_warning
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import Examples
from foldserve.training.datasets.mirroring import judge_mirroring
from foldserve.training.folder_recipe import (
    LEAST_STEPS,
    MOST_EPOCHS,
    choose_arch,
    choose_settings,
    choose_side,
)
from foldserve.training.models import create_model
from foldserve.training.recipes import RULE_FIELDS
from tests.training.conftest import make_examples


@given(
    arch=st.sampled_from(["lenet", "alexnet", "resnet"]),
    sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=5),
    count=st.integers(2, 100_000),
    recipe=st.sampled_from(["default", "long"]),
)
def test_the_rule_gives_settings_that_work_for_whatever_comes(
    arch: str, sizes: list[tuple[int, int]], count: int, recipe
):
    side = choose_side(arch, sizes)
    height, width = (side, side) if side else sizes[0]
    with torch.device("meta"):
        network = create_model(arch, in_channels=3, class_count=7, height=height, width=width)
    assert sum(value.numel() for value in network.parameters()) < 3_000_000
    chosen = choose_settings(arch, recipe, count, min(height, width))
    config = TrainConfig(**chosen)
    assert 2 <= config.batch_size <= max(2, count // 2)
    steps = config.epochs * (count // config.batch_size)
    assert steps >= LEAST_STEPS or config.epochs >= MOST_EPOCHS
    assert chosen.keys() == RULE_FIELDS - {"prune_images"}, "which is only ever asked for"


def test_few_images_are_augmented_more_if_there_is_time_to_learn_from_it():
    def chosen(count: int, epochs: int | None = None) -> str:
        return choose_settings("resnet", "default", count, 32, epochs=epochs)["auto_augment"]

    assert [chosen(count) for count in (50, 19_999, 20_000)] == ["trivial", "trivial", "none"]
    enough = choose_settings("resnet", "default", 1000, 32)["epochs"]
    # A time limit may leave fewer than half of the steps.
    for count, steps in ((1000, 4030), (20, 1200)):
        settings = choose_settings("resnet", "default", count, 32)
        assert settings["epochs"] * (count // settings["batch_size"]) == steps
        assert settings["auto_augment_steps"] == steps // 2
    assert choose_settings("resnet", "default", 20_000, 32)["auto_augment_steps"] == 0
    assert [chosen(1000, epochs) for epochs in (1, enough - 1, enough)] == ["none", "none", "trivial"]


@pytest.mark.parametrize(
    ("arch", "sizes", "side"),
    [
        ("lenet", [(28, 28)] * 3, None),
        ("lenet", [(40, 60)] * 3, None),
        ("lenet", [(8, 8)] * 3, 32),
        ("lenet", [(224, 224)] * 3, 64),
        ("resnet", [(32, 32)] * 3, None),
        ("resnet", [(64, 64)] * 3, 96),
        ("resnet", [(30, 40), (500, 400), (700, 90)], 96),
        ("resnet", [(600, 400), (500, 400), (30, 30)], 128),
        ("resnet", [(8, 8)] * 3, 32),
        ("mine:net", [(300, 200)] * 3, None),
        ("mine:net", [(300, 200), (200, 300)], 224),
    ],
)
def test_the_size_of_the_input_follows_images_and_network(arch: str, sizes: list[tuple[int, int]], side: int):
    assert choose_side(arch, sizes) == side


def test_the_network_follows_number_and_size_of_the_images():
    assert choose_arch(500, 200, is_grey=False) == "resnet"
    assert choose_arch(500, 28, is_grey=True) == "resnet"
    assert choose_arch(50_000, 28, is_grey=True) == "lenet"
    assert choose_arch(50_000, 28, is_grey=False) == "resnet"


@pytest.mark.parametrize(
    ("accuracy", "largest", "count", "warns"),
    [
        (0.204, 0.201, 340, True),
        (0.10, 0.10, 10_000, True),
        (0.11, 0.10, 10_000, False),
        (0.30, 0.25, 40, True),
        (0.91, 0.201, 340, False),
        (0.0, 0.5, 10, True),
        (1.0, 1.0, 10, True),
    ],
)
def test_accuracy_no_better_than_the_largest_class_is_warned_of(
    accuracy: float, largest: float, count: int, *, warns: bool
):
    metrics = {"test_accuracy": accuracy, "test_largest_class": largest, "test_images": count}
    warning = chance_warning(metrics)
    assert (warning is not None) == warns
    assert warning is None or "no better than always naming the largest class" in warning
    assert chance_warning({"test_accuracy": accuracy}) is None, "an earlier run does not say"


def test_mirroring_is_judged_by_the_images():
    """The class is the place of a bright quarter: left and right trade places in a mirror, noise does not."""
    images, labels = make_examples(200, seed=1)
    assert not judge_mirroring(Examples(images, labels)).keeps_class
    by_row = labels // 2  # top or bottom
    assert judge_mirroring(Examples(images, by_row)).keeps_class
