"""Finds test and validation images that are in training too, or nearly, so that the figures are too good.

Each image gets a difference hash: its brightness on 9x8 pixels, and per pair of neighbours whether it rises
(64 bits). Images whose hashes differ in few bits are compared by their pixels on 16x16. Both steps look at
the images as the network sees them, so copies of another size, format or quality are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from foldserve.training.datasets.dataset import Examples

_BITS = 64
_MOST_DIFFERENT_BITS = 4
# Mean difference of two encodings of one picture, of 256 grey levels; other pictures have 10 and more.
_MOST_DIFFERENT_LEVELS = 4.0
# Candidates per image that are compared by their pixels, and images for which all pairs are looked at.
_CANDIDATES = 5
_MOST_IMAGES = 100_000
_ROWS = 1024


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs int64 [P, 2]: an index into the judging images, and one into the training images."""

    pairs: Tensor
    other_class: int

    def __len__(self) -> int:
        return len(self.pairs)


def find_near_duplicates(judging: Examples, training: Examples) -> NearDuplicates | None:
    """Return the images of ``judging`` that are nearly one of ``training``; None if they are too many."""
    if max(len(judging), len(training)) > _MOST_IMAGES:
        return None
    here, there = _hashes(judging.images), _hashes(training.images)
    pairs = []
    for start in range(0, len(here), _ROWS):
        rows = here[start : start + _ROWS]
        different = (_BITS - rows @ there.T) / 2  # of +1 and -1: each agreeing bit adds 2 to the product
        bits, places = different.topk(min(_CANDIDATES, len(there)), dim=1, largest=False)
        row, column = torch.nonzero(bits <= _MOST_DIFFERENT_BITS, as_tuple=True)
        if not len(row):
            continue
        found = torch.stack([row + start, places[row, column]], dim=1)
        first = _thumbnails(judging.images[found[:, 0]], 16)
        second = _thumbnails(training.images[found[:, 1]], 16)
        is_near = (first - second).abs().flatten(1).mean(dim=1) <= _MOST_DIFFERENT_LEVELS
        pairs.append(found[is_near])
    every = torch.cat(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64)
    # The first of each judging image; its others say nothing new.
    keep = torch.ones(len(every), dtype=torch.bool)
    keep[1:] = every[1:, 0] != every[:-1, 0]
    kept = every[keep]
    differ = judging.labels[kept[:, 0]] != training.labels[kept[:, 1]]
    return NearDuplicates(kept, int(differ.sum()))


def _hashes(images: Tensor) -> Tensor:
    """Return float32 [N, 64] of +1 and -1."""
    hashes = []
    for part in torch.split(images, _ROWS):
        small = F.adaptive_avg_pool2d(part.float().mean(dim=1, keepdim=True), (8, 9))
        hashes.append((small[..., 1:] > small[..., :-1]).flatten(1).float() * 2 - 1)
    return torch.cat(hashes)


def _thumbnails(images: Tensor, side: int) -> Tensor:
    return F.adaptive_avg_pool2d(images.float(), side)
