"""What a turn decodes, and why it ends."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foldserve.imaging import ImageSpec, prepare_image
from foldserve.serving.decoding import turn
from foldserve.serving.decoding.turn import End, Outcome, TurnRules, decode_turn
from tests.support.crafted import encode, jpeg_of_scans

SPEC = ImageSpec(channel_order="L", height=8, width=8, resize_shorter_side=8)
RULES = TurnRules(SPEC, max_pixels=2**26, takes_long=False)
IMAGES = [encode(Image.new("L", (8 + index, 9), 20 * index)) for index in range(6)]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a turn is over sooner."""
    monkeypatch.setattr(turn, "_TURN_S", 3600.0)


def rows_for(images: list[bytes]) -> np.ndarray:
    return np.full((len(images), *SPEC.shape), 255, np.uint8)


def test_a_turn_decodes_all_images_within_its_time() -> None:
    rows = rows_for(IMAGES)
    assert decode_turn(IMAGES, RULES, rows) == Outcome(len(IMAGES), End.TIME)
    assert np.array_equal(rows, [prepare_image(image, SPEC) for image in IMAGES])


def test_a_turn_without_time_decodes_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "_TURN_S", 0.0)
    rows = rows_for(IMAGES)
    assert decode_turn(IMAGES, RULES, rows) == Outcome(1, End.TIME)
    assert np.all(rows[1:] == 255)


@pytest.mark.parametrize(
    ("third", "reason"),
    [
        (b"nothing", "not an image in a known format"),
        (b"", "the image is empty"),
        (IMAGES[3][:50], "damaged image"),
        (encode(Image.new("L", (20000, 20000))), "pixels; at most 67,108,864 pixels are decoded"),
    ],
)
def test_a_turn_ends_before_an_image_that_it_refuses(third: bytes, reason: str) -> None:
    images = [*IMAGES[:2], third, *IMAGES[3:]]
    outcome = decode_turn(images, RULES, rows_for(images))
    assert (outcome.done_count, outcome.end) == (2, End.REFUSED)
    assert reason in outcome.message


def test_a_turn_for_short_images_ends_before_one_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [IMAGES[0], jpeg_of_scans(6000, 10), IMAGES[1]]
    monkeypatch.setattr(turn, "prepare_picture", lambda _, spec, **__: np.zeros(spec.shape, np.uint8))
    assert decode_turn(images, RULES, rows_for(images)) == Outcome(1, End.LONG)
    patient = TurnRules(SPEC, RULES.max_pixels, takes_long=True)
    assert decode_turn(images, patient, rows_for(images)) == Outcome(3, End.TIME)
