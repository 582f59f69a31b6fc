"""How pictures of another shape become the input: crop, pad and stretch, and the rule from before them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foldserve.imaging import ImageSpec, decode_image, prepare_image
from foldserve.imaging.prepare import FIT_RULES
from tests.support.encoded_images import photograph

NEW_RULES = [rule for rule in FIT_RULES if rule != "shorter-side"]


def spec_of(height: int, width: int, fit: str, decode: str = "full", order: str = "RGB") -> ImageSpec:
    return ImageSpec(order, height, width, max(height, width), decode, fit)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def times(image: Image.Image, factor: int) -> Image.Image:
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def before(encoded: bytes, spec: ImageSpec) -> np.ndarray:
    """Prepare a picture as all releases did before there were several rules."""
    image = decode_image(encoded, spec.channel_order)
    if image.size != (spec.width, spec.height):
        scale = spec.resize_shorter_side / min(image.size)
        width, height = (max(spec.resize_shorter_side, round(side * scale)) for side in image.size)
        left, top = (width - spec.width) // 2, (height - spec.height) // 2
        box = (
            left * image.width / width,
            top * image.height / height,
            min(image.width, (left + spec.width) * image.width / width),
            min(image.height, (top + spec.height) * image.height / height),
        )
        image = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).reshape(spec.height, spec.width, spec.channels).transpose(2, 0, 1)


sides = st.integers(1, 60)


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(sides, sides), target=st.tuples(sides, sides), more=st.integers(0, 20))
def test_the_older_rule_gives_the_bits_that_it_gave(
    size: tuple[int, int], target: tuple[int, int], more: int
) -> None:
    encoded = encode(photograph(*size))
    spec = ImageSpec("RGB", *target, max(target) + more)
    assert np.array_equal(prepare_image(encoded, spec), before(encoded, spec))


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), side=st.integers(1, 40))
def test_crop_to_a_square_is_the_older_rule_bit_for_bit(size: tuple[int, int], side: int) -> None:
    encoded = encode(photograph(*size), "JPEG")
    for decode in ("full", "scaled"):
        new, old = (
            prepare_image(encoded, spec_of(side, side, fit, decode)) for fit in ("crop", "shorter-side")
        )
        assert np.array_equal(new, old)


@pytest.mark.parametrize("fit", NEW_RULES)
@pytest.mark.parametrize("shape", [(28, 84), (60, 20), (32, 32)], ids=str)
def test_a_picture_is_seen_the_same_at_twice_its_size(fit: str, shape: tuple[int, int]) -> None:
    height, width = shape
    image = photograph(width, height)
    once, twice = (prepare_image(encode(one), spec_of(*shape, fit)) for one in (image, times(image, 2)))
    assert np.abs(once.astype(int) - twice.astype(int)).mean() < 4


@pytest.mark.parametrize("shape", [(28, 84), (60, 20)], ids=str)
def test_the_older_rule_sees_the_middle_only(shape: tuple[int, int]) -> None:
    """The twin: by that rule the same picture at twice its size is another one."""
    height, width = shape
    image = photograph(width, height)
    once, twice = (
        prepare_image(encode(one), spec_of(*shape, "shorter-side")) for one in (image, times(image, 2))
    )
    assert np.abs(once.astype(int) - twice.astype(int)).mean() > 10


def test_pad_keeps_all_of_a_picture_and_mirrors_it() -> None:
    image = photograph(64, 16)
    padded = prepare_image(encode(image), spec_of(64, 64, "pad"))
    inside = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(padded[:, 24:40], inside)
    assert np.array_equal(padded[:, 8:24], inside[:, ::-1])
    assert np.array_equal(padded[:, 40:56], inside[:, ::-1])
    assert np.array_equal(padded[:, :8], inside[:, 8:])  # mirrored twice
    upright = prepare_image(encode(image.transpose(Image.Transpose.ROTATE_90)), spec_of(64, 64, "pad"))
    assert np.array_equal(upright[:, :, 24:40].transpose(0, 2, 1)[:, :, ::-1], inside)


@pytest.mark.parametrize("fit", NEW_RULES)
@pytest.mark.parametrize("order", ["L", "RGB"])
@pytest.mark.parametrize("size", [(900, 3), (1, 50), (1, 1), (37, 91)], ids=str)
def test_a_plain_picture_stays_plain(fit: str, order: str, size: tuple[int, int]) -> None:
    """No border of another colour appears, least of all a black one."""
    prepared = prepare_image(
        encode(Image.new("RGB", size, (200, 200, 200))), spec_of(24, 40, fit, order=order)
    )
    assert prepared.shape == (len(order), 24, 40)
    assert (prepared == 200).all()


def test_stretch_scales_each_side_by_itself() -> None:
    image = photograph(90, 30)
    expected = np.asarray(image.resize((20, 40), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(prepare_image(encode(image), spec_of(40, 20, "stretch")), expected)


@pytest.mark.parametrize("fit", NEW_RULES)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("shape", [(28, 84), (56, 56)], ids=str)
def test_scaled_decoding_differs_by_little(fit: str, orientation: int, shape: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photograph(1203, 901), "JPEG", quality=90, exif=exif)
    full, scaled = (
        prepare_image(encoded, spec_of(*shape, fit, rule)).astype(int) for rule in ("full", "scaled")
    )
    difference = np.abs(full - scaled)
    assert 0 < difference.mean() < 0.7
    assert difference.max() <= 5


def test_stretch_keeps_twice_the_length_of_both_sides_of_a_turned_picture() -> None:
    """As stored it is wide, and upright it is high; only one of its sides allows a smaller scale."""
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(photograph(1600, 400), "JPEG", quality=90, exif=exif)
    full, scaled = (prepare_image(encoded, spec_of(20, 200, "stretch", rule)) for rule in ("full", "scaled"))
    assert np.array_equal(full, scaled)


def test_a_spec_with_a_side_that_its_rule_does_not_use_is_refused() -> None:
    with pytest.raises(
        ValueError, match="resize_shorter_side is 40, which 'pad' has no use for; expected 30"
    ):
        ImageSpec("L", 30, 20, 40, fit="pad")
    with pytest.raises(ValueError, match="fit is 'squeeze'; expected 'shorter-side', 'crop'"):
        ImageSpec("L", 30, 20, 30, fit="squeeze")  # type: ignore[arg-type]
