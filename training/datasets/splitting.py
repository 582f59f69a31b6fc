"""Draws the images that are held out: of each class its share, and whole groups if there are groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return bool [N] with ``count`` images held out, of each class in proportion to ``labels`` int64 [N].

    Each class keeps an image, and gives one if it has another and ``count`` allows it.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(labels)
    exact = sizes.double() * count / len(labels)
    # At least one of each class that has two, before shares are rounded to the nearest.
    taken = torch.minimum(exact.floor().long().clamp(min=1), (sizes - 1).clamp(min=0))
    while int(taken.sum()) != count:
        excess = int(taken.sum()) > count
        movable = taken < sizes - 1
        if excess:  # the last one of a class only if no class has two
            movable = taken > (1 if int(taken.max()) > 1 else 0)
        gap = (taken - exact) if excess else (exact - taken)
        gap = torch.where(movable, gap, torch.full_like(gap, -torch.inf))
        taken[int(gap.argmax())] += -1 if excess else 1
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in enumerate(taken.tolist()):
        places = torch.nonzero(labels == label).flatten()
        is_held_out[places[torch.randperm(len(places), generator=generator)[:number]]] = True
    return is_held_out


def grouped(labels: Tensor, groups: Tensor, share: float, seed: int) -> Tensor:
    """Return bool [N] with about ``share`` of each class held out, every group int64 [N] whole on one side.

    Groups are drawn in a seeded order and held out if that brings the classes nearer to their share. Each
    class keeps an image. May hold out none, if every group is too large.
    """
    order = torch.randperm(int(groups.max()) + 1, generator=torch.Generator().manual_seed(seed))
    class_count = int(labels.max()) + 1
    sizes = torch.bincount(labels, minlength=class_count).double()
    table = torch.zeros(len(order), class_count, dtype=torch.float64)
    table.index_put_((groups, labels), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    left = share * sizes
    held = torch.zeros_like(sizes)
    chosen = []
    for group in order.tolist():
        counts = table[group]
        is_better = (left - counts).abs().sum() < left.abs().sum()
        if bool(is_better) and bool((held + counts < sizes)[counts > 0].all()):
            left, held = left - counts, held + counts
            chosen.append(group)
    return torch.isin(groups, torch.tensor(chosen, dtype=torch.int64))
