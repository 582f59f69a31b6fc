"""Augmentations move, mirror and erase pixels, make no new ones, and repeat exactly from a seed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.training.augmentation.augment import (
    NO_AUGMENTATION,
    Augmentation,
    random_crop,
    random_erase,
    random_horizontal_flip,
    random_resized_crop,
)
from foldserve.training.augmentation.border import Border, add_border

ALL = Augmentation(crop_padding=3, flip=True, erase_probability=0.5, smallest_crop=0.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(count: int = 64, channels: int = 1, height: int = 12, width: int = 10) -> torch.Tensor:
    """Return images in which each pixel has a value of its own, never 0, so that it can be found again."""
    image = torch.arange(1, channels * height * width + 1).reshape(1, channels, height, width)
    return image.to(torch.int32).expand(count, -1, -1, -1).contiguous()


@settings(max_examples=25, deadline=None)
@given(
    padding=st.integers(1, 4),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
    border=st.sampled_from(["mirror", "black"]),
)
def test_each_crop_is_a_window_of_its_own_padded_image(
    padding: int, channels: int, seed: int, border: Border
):
    images = make_images(count=5, channels=channels) + 1000 * torch.arange(5).view(5, 1, 1, 1).int()
    padded = numpys_border(images, padding, border)
    for sample, crop in enumerate(random_crop(images, padding, seeded(seed), border)):
        windows = (
            padded[sample, :, top : top + 12, left : left + 10]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        )
        assert any(torch.equal(crop, window) for window in windows)


def numpys_border(images: torch.Tensor, padding: int, border: Border) -> torch.Tensor:
    """Return what the imaging of all other parts does to pictures of another shape, or zeros."""
    around = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    mode: Literal["symmetric", "constant"] = "symmetric" if border == "mirror" else "constant"
    return torch.from_numpy(np.pad(images.numpy(), around, mode=mode))


@pytest.mark.parametrize("padding", [1, 7, 40])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1)])
def test_borders_wider_than_the_image_mirror_it_again(padding: int, shape: tuple[int, int]):
    images = make_images(2, 3, *shape).to(torch.uint8)
    assert torch.equal(add_border(images, padding, "mirror"), numpys_border(images, padding, "mirror"))


def test_crops_of_white_images_stay_white():
    white = torch.full((64, 3, 12, 10), 255, dtype=torch.uint8)
    assert torch.equal(random_crop(white, 4, seeded()), white)
    blackened = random_crop(white, 4, seeded(), "black")
    assert blackened.min() == 0, "the twin: black borders show"


def test_random_crops_reach_every_position():
    crops = random_crop(make_images(count=500), 1, seeded())
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == 9


def test_random_flips_mirror_half_and_leave_the_rest_unchanged():
    images = make_images(count=1000)
    flipped = random_horizontal_flip(images, seeded())
    mirrored = (flipped == images.flip(-1)).flatten(1).all(dim=1)
    same = (flipped == images).flatten(1).all(dim=1)
    assert torch.all(mirrored ^ same)
    assert 420 < mirrored.sum() < 580  # five standard deviations of 15.8


def test_erased_pixels_are_one_rectangle_within_the_stated_area():
    images = make_images(count=3000, height=28, width=28)
    erased = random_erase(images, 1.0, seeded()) == 0
    for mask in erased[:200, 0]:
        rows, columns = torch.nonzero(mask.any(dim=1)).flatten(), torch.nonzero(mask.any(dim=0)).flatten()
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    shares = erased.float().mean(dim=(1, 2, 3))
    assert shares.min() > 0.01  # 2 % and 20 %, with sides rounded to whole pixels
    assert shares.max() < 0.25
    assert erased[:, 0].any(dim=0).all()  # every place is reached


def test_erasing_has_the_given_probability():
    erased = (random_erase(make_images(count=2000), 0.25, seeded()) == 0).flatten(1).any(dim=1)
    assert 400 < erased.sum() < 600  # five standard deviations of 19.4 around 500
    assert not (random_erase(make_images(), 1e-9, seeded()) == 0).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_keeps_shape_and_dtype_and_repeats_from_a_seed(dtype: torch.dtype):
    images = (make_images(channels=3) % 251).to(dtype)
    before = images.clone()
    first, again, other = (ALL(images, seeded(seed)) for seed in (7, 7, 8))
    assert (first.shape, first.dtype) == (images.shape, dtype)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_no_augmentation_returns_the_images():
    images = make_images()
    assert torch.equal(NO_AUGMENTATION(images, seeded()), images)


def test_a_resized_crop_is_a_scaled_window_of_its_own_image():
    """A crop of a ramp from 0 to 1 is a ramp too, whose ends give its position and size."""
    height, width, count = 40, 40, 2000
    ramp = (torch.arange(40) + 0.5) / 40
    rows = ramp[:, None].expand(height, width)
    columns = ramp[None, :].expand(height, width)
    images = torch.stack([rows, columns]).expand(count, -1, -1, -1)
    crops = random_resized_crop(images, 0.3, seeded())
    steps = (crops[:, 0, 21, 20] - crops[:, 0, 20, 20], crops[:, 1, 20, 21] - crops[:, 1, 20, 20])
    heights, widths = steps[0] * 40, steps[1] * 40  # share of each side that was kept
    areas = heights * widths
    assert areas.min() > 0.28  # clamping a side to the whole image takes a little off the smallest
    assert areas.max() <= 1.0001
    assert areas.mean().item() == pytest.approx(0.62, abs=0.03)
    assert (heights / widths).min() > 0.74
    assert (heights / widths).max() < 1.34
    assert crops.min() >= 0.0124  # half a pixel: nothing from outside the image
    assert crops.max() <= 0.9876


def test_a_resized_crop_of_the_whole_area_changes_only_the_aspect():
    images = torch.randint(256, (8, 3, 9, 7), dtype=torch.uint8, generator=seeded())
    crops = random_resized_crop(images, 1.0, seeded())
    assert crops.dtype == torch.uint8
    assert crops.shape == images.shape
