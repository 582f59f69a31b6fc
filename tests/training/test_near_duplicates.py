"""Copies between training and test images are found, also smaller, paler or recompressed; others are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from foldserve.training.datasets import Examples
from foldserve.training.datasets.near_duplicates import find_near_duplicates


def pictures(count: int, seed: int) -> torch.Tensor:
    """Return uint8 [N, 3, 64, 64]: coarse random shapes, as photographs have them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def as_jpeg(image: torch.Tensor) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 48)).save(buffer, "JPEG", quality=70)
    with Image.open(buffer) as again:
        return torch.from_numpy(np.array(again.resize((64, 64)))).permute(2, 0, 1)


@pytest.mark.parametrize("change", [lambda image: image, as_jpeg], ids=["the same bytes", "smaller, as JPEG"])
def test_copies_are_found_with_the_image_that_they_copy(change):
    training, test = pictures(300, seed=0), pictures(50, seed=1)
    test[7], test[30] = change(training[200]), change(training[11])
    labels = torch.zeros(300, dtype=torch.int64)
    labels[11] = 1
    found = find_near_duplicates(
        Examples(test, torch.zeros(50, dtype=torch.int64)), Examples(training, labels)
    )
    assert found is not None
    assert found.pairs.tolist() == [[7, 200], [30, 11]]
    assert found.other_class == 1


def test_other_pictures_are_no_copies():
    training, test = pictures(300, seed=0), pictures(200, seed=1)
    labels = torch.zeros(300, dtype=torch.int64)
    found = find_near_duplicates(Examples(test, labels[:200]), Examples(training, labels))
    assert found is not None
    assert len(found) == 0


def test_flat_pictures_of_other_brightness_are_no_copies():
    """Their hashes are equal: nothing rises anywhere."""
    flat = torch.arange(0, 250, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 32, 32)
    labels = torch.zeros(25, dtype=torch.int64)
    found = find_near_duplicates(Examples(flat[:1], labels[:1]), Examples(flat[1:], labels[1:]))
    assert found is not None
    assert len(found) == 0
