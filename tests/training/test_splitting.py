"""Held-out images: each class gives its share and keeps an image; groups stay whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.datasets.splitting import grouped, stratified


def test_each_class_gives_one_before_any_gives_two():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([2, 2, 8]))
    held_out = stratified(labels, 3, seed=0)
    assert torch.bincount(labels[held_out], minlength=3).tolist() == [1, 1, 1]


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=8), data=st.data())
def test_a_stratified_split_gives_each_class_its_share(counts: list[int], data: st.DataObject):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    movable = len(labels) - len(counts)
    if movable == 0:
        return
    count = data.draw(st.integers(1, movable))
    held_out = stratified(labels, count, seed=0)
    assert int(held_out.sum()) == count
    per_class = torch.bincount(labels[held_out], minlength=len(counts))
    assert torch.equal(held_out, stratified(labels, count, seed=0))
    divisible = sum(each > 1 for each in counts)
    for label, size in enumerate(counts):
        taken = int(per_class[label])
        assert taken < size
        if size > 1 and count >= divisible:
            assert taken >= 1
        if size * count >= 2 * len(labels) and count >= 2 * len(counts):
            # Large enough that neither rounding nor the one of each class explains more.
            assert taken <= size * count / len(labels) + len(counts)


def test_shares_of_large_classes_are_exact():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([600, 300, 50]))
    held_out = stratified(labels, 95, seed=0)
    assert torch.bincount(labels[held_out]).tolist() == [60, 30, 5]
    assert not torch.equal(held_out, stratified(labels, 95, seed=1))


@given(
    group_sizes=st.lists(st.integers(1, 12), min_size=2, max_size=30),
    share=st.sampled_from([0.1, 0.2]),
    seed=st.integers(0, 3),
)
def test_groups_are_whole_and_classes_keep_images(group_sizes: list[int], share: float, seed: int):
    groups = torch.repeat_interleave(torch.arange(len(group_sizes)), torch.tensor(group_sizes))
    labels = torch.arange(len(groups)) % 3
    held_out = grouped(labels, groups, share, seed)
    for group in range(len(group_sizes)):
        assert len(held_out[groups == group].unique()) == 1
    for label in labels.unique():
        assert not held_out[labels == label].all()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_small_groups_come_near_the_share(share: float):
    groups = torch.arange(400) // 4
    labels = torch.arange(400) % 2
    held_out = grouped(labels, groups, share, seed=0)
    for label in (0, 1):
        assert held_out[labels == label].double().mean().item() == pytest.approx(share, abs=0.02)


def test_groups_that_are_too_large_hold_out_nothing():
    assert not grouped(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), 0.2, seed=0).any()
