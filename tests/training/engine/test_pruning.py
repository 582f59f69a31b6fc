"""Pruned epochs: fewer images, chosen by their losses, and the same gradient on average."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.config import TrainConfig
from foldserve.training.engine.pruning import Pruning

CPU = torch.device("cpu")


@given(
    count=st.integers(1, 60),
    share=st.floats(0, 0.5),
    distinct=st.integers(1, 60),
    unknown=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_a_pruned_epoch_leaves_out_easy_images_only_and_keeps_the_gradient(
    count: int, share: float, distinct: int, unknown: int, seed: int
):
    """In two epochs of opposite orders each easy image is left out once, so their sum is exact."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randint(distinct, (count,), generator=generator).float()
    losses[:unknown] = float("inf")
    pruning = Pruning.of(share, count, CPU)
    pruning.record(torch.arange(count), losses)
    pruning.start_epoch()
    order = torch.randperm(count, generator=generator)
    counted = torch.zeros(count)
    for each in (order, order.flip(0)):
        images, weights = pruning.choose(each, 0.5)
        assert len(images) == len(images.unique()) == pruning.image_count
        places = torch.argsort(each)[images]
        assert torch.equal(places, places.sort().values), "those that stay keep their order"
        counted[images] += weights[images]
        assert float(weights[images].mean()) == pytest.approx(1)
        out = sorted(set(range(count)) - set(images.tolist()))
        easiest = losses.sort().values[: 2 * pruning.left_out]
        if out and bool(losses.isfinite().any()):
            assert float(losses[out].max()) <= float(easiest.max())
    if bool(losses.isfinite().any()):
        torch.testing.assert_close(counted, torch.full_like(counted, 2 * pruning.image_count / count))


def test_the_first_epoch_and_the_last_ones_leave_out_any_images():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    pruning = Pruning.of(0.25, 40, CPU)
    images, weights = pruning.choose(order, 0.0)
    assert torch.equal(images, order[:30])
    assert torch.equal(weights, torch.ones(40))
    pruning.record(torch.arange(40), torch.arange(40.0))
    assert torch.equal(pruning.choose(order, 0.1)[0], order[:30]), "not amid an epoch"
    pruning.start_epoch()
    images, weights = pruning.choose(order, 0.1)
    assert set(images.tolist()) > set(range(20, 40)), "the harder half stays"
    assert weights.unique().tolist() == [0.75, 1.5]
    images, weights = pruning.choose(order, 0.875)
    assert torch.equal(images, order[:30])
    assert torch.equal(weights, torch.ones(40))


def test_what_an_epoch_is_is_said():
    assert Pruning.of(0.35, 55_000, CPU).describe(279) == (
        "an epoch is 35,750 of 55,000 images, in 279 steps: half of the 38,500 with the lowest losses are "
        "left out, and the others of these count double"
    )


def test_pruning_and_a_balanced_sampler_are_not_combined():
    with pytest.raises(
        ValueError, match="--prune-images leaves images out that --sampler balanced shows again"
    ):
        TrainConfig(prune_images=0.1, sampler="balanced")


def test_a_balanced_sampler_takes_the_place_of_a_recipes_pruning():
    assert TrainConfig(arch="alexnet").prune_images == 0.35
    assert TrainConfig(arch="alexnet", sampler="balanced").prune_images == 0
    assert TrainConfig(arch="alexnet").prune_images == 0.35, "the recipe is as it was"
