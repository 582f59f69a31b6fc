"""Each colour operation gives what Pillow gives, image by image, for a whole batch at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from foldserve.training.augmentation import colour
from foldserve.training.augmentation.color_jitter import ColorJitter
from foldserve.training.augmentation.random_policy import (
    OPERATION_COUNT,
    RandomPolicy,
    apply_operations,
)

if TYPE_CHECKING:
    from foldserve.training.augmentation.border import Border

COUNT = 6


def batch(channels: int, seed: int, height: int = 24, width: int = 26) -> torch.Tensor:
    """Images with different ranges of values; the first is of one colour."""
    random = np.random.default_rng(seed)
    low = random.integers(0, 120, (COUNT, channels, 1, 1))
    high = low + random.integers(1, 135, (COUNT, channels, 1, 1))
    images = random.integers(low, high + 1, (COUNT, channels, height, width), dtype=np.int64)
    images[0] = 77
    return torch.from_numpy(images.astype(np.uint8))


def as_pictures(images: torch.Tensor) -> list[Image.Image]:
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array) for array in arrays]


def as_batch(pictures: list[Image.Image]) -> torch.Tensor:
    arrays = [np.atleast_3d(np.asarray(picture)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def difference(given: torch.Tensor, expected: torch.Tensor) -> int:
    return int((given.int() - expected.int()).abs().max())


CHANNELS = st.sampled_from([1, 3])
SEEDS = st.integers(0, 10_000)


@settings(max_examples=40)
@given(channels=CHANNELS, seed=SEEDS)
def test_tables_are_pillows(channels: int, seed: int) -> None:
    images = batch(channels, seed)
    random = np.random.default_rng(seed)
    bits, thresholds = random.integers(1, 9, COUNT), random.integers(0, 257, COUNT)
    pictures = as_pictures(images)
    expected = {
        "posterize": [
            ImageOps.posterize(picture, int(kept)) for picture, kept in zip(pictures, bits, strict=True)
        ],
        "solarize": [
            ImageOps.solarize(picture, int(limit))
            for picture, limit in zip(pictures, thresholds, strict=True)
        ],
        "autocontrast": [ImageOps.autocontrast(picture) for picture in pictures],
        "equalize": [ImageOps.equalize(picture) for picture in pictures],
    }
    tables = {
        "posterize": colour.posterize_tables(images, torch.from_numpy(bits)),
        "solarize": colour.solarize_tables(images, torch.from_numpy(thresholds)),
        "autocontrast": colour.autocontrast_tables(images),
        "equalize": colour.equalize_tables(images),
    }
    for name, chosen in tables.items():
        assert torch.equal(colour.look_up(chosen, images), as_batch(expected[name])), name


@settings(max_examples=40)
@given(channels=CHANNELS, seed=SEEDS)
def test_blends_are_pillows_to_a_grey_level(channels: int, seed: int) -> None:
    """Pillow rounds in other places: a level of 256 may differ."""
    images = batch(channels, seed)
    factors = torch.from_numpy(np.random.default_rng(seed).uniform(0, 2, COUNT)).float()
    pictures = list(zip(as_pictures(images), factors.tolist(), strict=True))
    plain = {
        ImageEnhance.Brightness: torch.zeros_like(images),
        ImageEnhance.Contrast: colour.mean_grey(images),
        ImageEnhance.Color: colour.grey(images),
        ImageEnhance.Sharpness: colour.smooth(images),
    }
    for enhance, plainer in plain.items():
        expected = as_batch([enhance(picture).enhance(factor) for picture, factor in pictures])
        assert difference(colour.blend(plainer, images, factors), expected) <= 2, enhance


def test_grey_is_pillows() -> None:
    images = batch(3, 5)
    expected = as_batch([picture.convert("L") for picture in as_pictures(images)])
    assert torch.equal(colour.grey(images), expected)


def test_whole_turn_of_the_hue_is_the_identity_and_a_third_swaps_colours() -> None:
    images = batch(3, 1)
    assert difference(colour.turn_hue(images, torch.ones(COUNT)), images) <= 1
    turned = colour.turn_hue(images, torch.full((COUNT,), 0.5))
    assert difference(colour.grey(turned[:1]), colour.grey(images[:1])) <= 1  # a flat grey image stays
    red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    red[:, 0] = 100
    third = colour.turn_hue(red, torch.tensor([1 / 3]))
    assert int(third[0, 0, 0, 0]) < int(third[0, 1, 0, 0])  # red is not its strongest part any more
    assert torch.equal(colour.turn_hue(batch(1, 1), torch.ones(COUNT) / 3), batch(1, 1))


@pytest.mark.parametrize("operation", range(OPERATION_COUNT))
def test_each_image_gets_its_own_operation(operation: int) -> None:
    """In a batch of many operations an image becomes what it becomes alone, and others do not change it."""
    images = batch(3, 3, height=32, width=32)
    images[4, 0, 0, 0] = 255
    operations = torch.arange(COUNT) * 2 % OPERATION_COUNT
    operations[4] = operation
    strengths = torch.linspace(-1, 1, COUNT)
    together = apply_operations(images, operations, strengths)
    alone = apply_operations(images[4:5], operations[4:5], strengths[4:5])
    assert torch.equal(together[4:5], alone)
    changed = not torch.equal(alone, images[4:5])
    assert changed == (operation != 0)


@pytest.mark.parametrize("operation", [op for op in range(OPERATION_COUNT) if op not in (12, 13)])
def test_no_strength_is_the_identity(operation: int) -> None:
    """All but autocontrast and equalize, which have no strength."""
    images = batch(3, 4)
    operations = torch.full((COUNT,), operation)
    assert torch.equal(apply_operations(images, operations, torch.zeros(COUNT)), images)


def test_quarter_turn_and_shift_move_the_pixels_where_they_belong() -> None:
    images = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 1, 4] = 200  # above the centre
    operations, strengths = torch.tensor([5, 3]), torch.tensor([90 / 135, 1 / 9 / 0.45])
    turned, shifted = apply_operations(images, operations, strengths)
    assert turned[0].nonzero().tolist() == [[4, 1]] or turned[0].nonzero().tolist() == [[4, 7]]
    assert shifted[0].nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("operation", [1, 2, 3, 4, 5])
def test_moves_mirror_the_image_at_its_border(operation: int) -> None:
    """A white image stays white, and a shift by a pixel shows the outermost pixels twice."""
    white = torch.full((COUNT, 3, 24, 26), 255, dtype=torch.uint8)
    operations, strengths = torch.full((COUNT,), operation), torch.linspace(-1, 1, COUNT)
    assert torch.equal(apply_operations(white, operations, strengths), white)
    black = apply_operations(white, operations, strengths, beyond="black")
    assert black.flatten(1).amin(dim=1).tolist() == [0] * COUNT, "the twin: black borders show"
    images = batch(3, 2)
    if operation == 3:
        strengths = torch.full((COUNT,), 1 / 26 / 0.45)
        expected = torch.cat([images[..., 1:], images[..., -1:]], dim=-1)
        assert difference(apply_operations(images, operations, strengths), expected) <= 1


@pytest.mark.parametrize("border", ["mirror", "black"])
def test_policies_move_with_their_own_border(border: Border) -> None:
    """Of 400 moved white images some show black at their border, or none does."""
    white = torch.full((400, 1, 24, 24), 255, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    corners = RandomPolicy(border=border)(white, generator)[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    is_uneven = (corners != corners[:, :1]).any(dim=1)  # no operation on colours does that to a white image
    assert bool(is_uneven.any()) == (border == "black")


@pytest.mark.parametrize("policy", [RandomPolicy(), RandomPolicy(2, 9), ColorJitter(0.4, 0.4, 0.4, 0.1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_repeat_from_a_seed_and_draw_for_each_image(
    policy: RandomPolicy | ColorJitter, channels: int
) -> None:
    images = batch(channels, 1)[1:2].expand(200, -1, -1, -1).contiguous()

    def augmented(seed: int) -> torch.Tensor:
        return policy(images, torch.Generator().manual_seed(seed))

    first = augmented(1)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first, augmented(1))
    assert not torch.equal(first, augmented(2))
    assert len({image.numpy().tobytes() for image in first}) > 50


def test_rand_is_weaker_than_trivial_at_low_magnitude() -> None:
    images = batch(3, 8, height=32, width=32)[1:].repeat(40, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)

    def change(policy: RandomPolicy) -> float:
        return float((policy(images, generator).float() - images.float()).abs().mean())

    assert change(RandomPolicy(1, 0)) < change(RandomPolicy(1, 9)) < change(RandomPolicy(1, 30))
