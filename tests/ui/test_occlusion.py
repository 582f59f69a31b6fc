"""Which part of a picture a label depends on, for models of which that is known."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foldserve.ui.heat_map import draw_heat, name_place
from foldserve.ui.occlusion import MAX_REQUEST_BYTES, MAX_REQUEST_IMAGES, Logits, hide_parts, occlude

if TYPE_CHECKING:
    from numpy.typing import NDArray

BRIGHT = np.full((1, 28, 28), 200, dtype=np.uint8)


def looks_at(rows: slice, columns: slice) -> Logits:
    """Return a model of two classes: the first is likelier the brighter a part of the picture is."""

    def logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        brightness = images[:, :, rows, columns].mean(axis=(1, 2, 3)) / 25
        return np.stack([brightness, np.zeros_like(brightness)], axis=1).astype(np.float32)

    return logits


class Clock:
    """A clock on which an image takes ``image_s``."""

    def __init__(self, image_s: float) -> None:
        self.now, self._image_s = 0.0, image_s

    def __call__(self) -> float:
        return self.now

    def slowed(self, logits: Logits) -> Logits:
        def slow(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.now += self._image_s * len(images)
            return logits(images)

        return slow


@pytest.mark.parametrize(
    ("rows", "columns", "place"),
    [
        (slice(0, 6), slice(0, 6), "upper left"),
        (slice(22, 28), slice(22, 28), "lower right"),
        (slice(11, 17), slice(11, 17), "centre"),
        (slice(11, 17), slice(0, 6), "middle left"),
    ],
)
def test_the_part_that_the_model_looks_at_is_found(rows: slice, columns: slice, place: str) -> None:
    found = occlude(looks_at(rows, columns), BRIGHT, 0, fill=[0.0])
    assert name_place(found.strongest, len(found.drops)) == place
    assert found.least_probability < 0.6
    assert found.probability > 0.99
    assert found.stands_out
    # Of the other label it is the other way about: hiding that part makes it likelier.
    other = occlude(looks_at(rows, columns), BRIGHT, 1, fill=[0.0])
    assert other.drops[found.strongest] < 0
    assert not other.stands_out


def test_certain_labels_have_a_map_too() -> None:
    """A probability of 1 in float32 falls by nothing that float32 shows; the log-odds fall."""
    logits = looks_at(slice(0, 6), slice(0, 6))
    found = occlude(lambda images: 50 * logits(images), BRIGHT, 0, fill=[0.5])
    assert found.probability == pytest.approx(1.0, abs=1e-12)
    assert found.heat.max() == 1.0
    assert name_place(found.strongest, len(found.drops)) == "upper left"


def test_a_model_that_looks_at_nothing_has_no_part_that_stands_out() -> None:
    found = occlude(lambda images: np.zeros((len(images), 3), np.float32), BRIGHT, 0, fill=[0.0])
    assert not found.stands_out
    assert (found.heat == 0).all()
    assert found.probability == pytest.approx(1 / 3)


def test_a_single_class_is_certain() -> None:
    found = occlude(lambda images: np.zeros((len(images), 1), np.float32), BRIGHT, 0, fill=[0.0])
    assert found.probability == pytest.approx(1.0)
    assert not found.stands_out


def test_probabilities_are_the_calibrated_ones() -> None:
    logits = looks_at(slice(0, 6), slice(0, 6))
    found = occlude(logits, BRIGHT, 0, fill=[0.0], temperature=2.0)
    assert found.probability == pytest.approx(1 / (1 + np.exp(-8.0 / 2)))


@pytest.mark.parametrize(("image_s", "cells"), [(0.0, 14), (0.003, 14), (0.006, 8), (0.05, 5), (10.0, 5)])
def test_the_grid_is_as_fine_as_the_time_allows(image_s: float, cells: int) -> None:
    clock = Clock(image_s)
    found = occlude(
        clock.slowed(looks_at(slice(0, 6), slice(0, 6))), BRIGHT, 0, fill=[0.0], budget_s=1.0, clock=clock
    )
    assert found.drops.shape == (cells, cells)
    assert found.duration_s <= max(1.0, 26 * image_s + 1e-9)
    assert found.duration_s == pytest.approx(image_s * found.image_count)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 224, 224), (3, 700, 700)])
def test_requests_are_few_and_bounded(shape: tuple[int, int, int]) -> None:
    sizes = []

    def logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append((len(images), images.nbytes))
        return np.zeros((len(images), 2), np.float32)

    clock = Clock(0.0)
    pixels = np.zeros(shape, np.uint8)
    found = occlude(logits, pixels, 0, fill=[0.0] * shape[0], budget_s=0.0, clock=clock)
    assert sum(count for count, _ in sizes) == found.image_count
    assert len(sizes) == found.request_count
    for count, byte_count in sizes:
        assert count <= MAX_REQUEST_IMAGES
        assert byte_count <= max(MAX_REQUEST_BYTES, pixels.nbytes)
    if pixels.nbytes < 200_000:
        assert found.request_count <= 6


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 14))
def test_each_copy_hides_a_part_and_together_they_hide_everything(
    height: int, width: int, cells: int
) -> None:
    pixels = np.full((2, height, width), 9, dtype=np.uint8)
    copies = hide_parts(pixels, cells, np.array([1, 2], np.uint8), range(cells * cells))
    assert copies.shape == (cells * cells, 2, height, width)
    hidden = copies[:, 0] == 1
    assert hidden.any(axis=(1, 2)).all()
    assert hidden.any(axis=0).all()
    assert (copies[:, 1][hidden] == 2).all()
    assert (pixels == 9).all()


def test_heat_is_drawn_where_it_matters() -> None:
    heat = np.zeros((7, 7))
    heat[0, 0] = 1.0
    drawn = np.asarray(Image.open(io.BytesIO(draw_heat(BRIGHT, heat))).convert("RGB")).astype(int)
    height, width, _ = drawn.shape
    assert height == width == 308  # 28 pixels, each 11 long
    orange = drawn[..., 0] - drawn[..., 2]
    assert orange[10, 10] > 100
    assert abs(orange[-10, -10]) < 5
