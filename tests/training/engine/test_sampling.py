"""A balanced epoch has each class equally often and every image at least once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.engine.sampling import Sampler, epoch_order


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    batch_size=st.integers(2, 33),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_a_balanced_epoch_loses_no_image_and_prefers_no_class(
    counts: list[int], batch_size: int, seed: int, epoch: int
):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sampler = Sampler(labels, batch_size, seed, is_balanced=True)
    order = sampler.order(epoch)
    assert len(order) == sampler.steps * batch_size
    times = torch.bincount(order, minlength=len(labels))
    assert int(times.min()) >= 1
    per_class = torch.bincount(labels[order], minlength=len(counts))
    assert int(per_class.max() - per_class.min()) <= 1
    for label in range(len(counts)):
        of_class = times[labels == label]
        assert int(of_class.max() - of_class.min()) <= 1
    assert torch.equal(order, sampler.order(epoch))


def test_epochs_differ_and_a_class_without_images_is_left_out():
    sampler = Sampler(torch.tensor([0] * 30 + [2] * 3), 8, 0, is_balanced=True)
    assert not torch.equal(sampler.order(0), sampler.order(1))
    assert sampler.describe() == (
        "an epoch is 64 images in 8 steps: each class about 32 times, every image at least once, those of "
        "the rarest class at least 10 times"
    )


def test_a_shuffled_epoch_is_the_one_it_always_was():
    sampler = Sampler(torch.zeros(50, dtype=torch.int64), 8, 3)
    assert sampler.steps == 6
    assert torch.equal(sampler.order(2), epoch_order(50, 3, 2))
    assert sampler.describe() is None
