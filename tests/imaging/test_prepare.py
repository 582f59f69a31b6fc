"""Decoding images to arrays: orientation, colours, size; other bytes are refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foldserve.errors import ImageError
from foldserve.imaging import ImageSpec, decode_image, prepare_image

GREY = ImageSpec(channel_order="L", height=8, width=8, resize_shorter_side=8)
COLOUR = ImageSpec(channel_order="RGB", height=8, width=8, resize_shorter_side=8)


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), image_format=st.sampled_from(["PNG", "BMP"]))
def test_an_image_of_the_input_size_passes_through_bit_by_bit(height: int, width: int, image_format: str):
    pixels = noise(height, width, 3)
    side = max(height, width)
    spec = ImageSpec(channel_order="RGB", height=height, width=width, resize_shorter_side=side)
    prepared = prepare_image(encode(Image.fromarray(pixels), image_format), spec)
    assert prepared.flags.c_contiguous
    assert np.array_equal(prepared, pixels.transpose(2, 0, 1))


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    extra=st.integers(0, 9),
    mode=st.sampled_from(["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"]),
    channel_order=st.sampled_from(["L", "RGB"]),
)
def test_any_image_becomes_the_shape_asked_for(source, target, extra, mode, channel_order):
    height, width = target
    spec = ImageSpec(channel_order, height, width, resize_shorter_side=max(target) + extra)
    image = Image.fromarray(noise(*source, 3)).convert(mode)
    prepared = prepare_image(encode(image, "JPEG" if mode == "CMYK" else "PNG"), spec)
    assert prepared.shape == spec.shape
    assert prepared.dtype == np.uint8


@settings(max_examples=40, deadline=None)
@given(value=st.integers(0, 255), size=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_a_plain_image_keeps_its_grey_at_any_size(value: int, size: tuple[int, int]):
    prepared = prepare_image(encode(Image.new("L", size, value)), GREY)
    assert np.all(prepared == value)


# EXIF 274: what has to be done to the stored image to see it upright.
TURNS = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, image_format: str):
    pixels = noise(8, 8, 3)
    exif = Image.Exif()
    exif[274] = orientation
    encoded = encode(Image.fromarray(pixels), image_format, exif=exif.tobytes(), lossless=True)
    assert np.array_equal(prepare_image(encoded, COLOUR), TURNS[orientation](pixels).transpose(2, 0, 1))


def test_exif_orientation_is_applied_before_the_size_is_compared():
    exif = Image.Exif()
    exif[274] = 6
    spec = ImageSpec(channel_order="L", height=6, width=4, resize_shorter_side=6)
    pixels = noise(4, 6)
    encoded = encode(Image.fromarray(pixels), exif=exif.tobytes())
    assert np.array_equal(prepare_image(encoded, spec)[0], np.rot90(pixels, -1))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    prepared = prepare_image(encode(Image.fromarray(wide)), GREY)
    assert np.array_equal(prepared[0], (wide >> 8).astype(np.uint8))


def test_transparency_shows_white_behind():
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:, 4:] = (200, 0, 0, 255)
    pixels[0, 0] = (0, 0, 0, 128)
    prepared = prepare_image(encode(Image.fromarray(pixels)), COLOUR)
    assert np.all(prepared[:, 1:, :4] == 255)
    assert np.array_equal(prepared[:, 3, 5], (200, 0, 0))
    assert np.all(prepared[:, 0, 0] == 127)  # half of black over white


def test_a_transparent_palette_colour_shows_white_behind():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    prepared = prepare_image(encode(image, transparency=1), COLOUR)
    assert np.array_equal(prepared[:, 0, 0], (10, 20, 30))
    assert np.all(prepared[:, 1, 1] == 255)


def test_palette_colours_are_looked_up():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert np.array_equal(prepare_image(encode(image, "GIF"), COLOUR)[:, 4, 4], (40, 50, 60))


def test_a_mirrored_image_gives_a_mirrored_array():
    """The centre is the centre, and scaling favours no side."""
    pixels = noise(40, 60)
    spec = ImageSpec(channel_order="L", height=10, width=10, resize_shorter_side=12)
    plain = prepare_image(encode(Image.fromarray(pixels)), spec)
    turned = prepare_image(encode(Image.fromarray(pixels[::-1, ::-1].copy())), spec)
    assert np.abs(plain[:, ::-1, ::-1].astype(int) - turned).max() <= 1  # rounding to uint8


def test_the_centre_is_cropped():
    pixels = np.zeros((16, 48), dtype=np.uint8)
    pixels[:, 16:32] = 255
    assert np.all(prepare_image(encode(Image.fromarray(pixels)), GREY)[:, :, 1:-1] == 255)


@pytest.mark.parametrize("size", [(20_000, 3), (3, 20_000), (1, 5_000), (5_000, 1)])
def test_strips_are_prepared_without_being_blown_up(size: tuple[int, int]):
    assert prepare_image(encode(Image.new("L", size, 77)), GREY).tolist() == np.full((1, 8, 8), 77).tolist()


def test_only_the_first_frame_counts():
    frames = [Image.new("L", (8, 8), value) for value in (30, 200)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.all(prepare_image(encoded, GREY) == 30)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_bomb_is_refused_by_its_header_alone():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match="pixels"):
        prepare_image(bomb, GREY)


def test_the_limit_is_exact():
    prepare_image(encode(Image.new("L", (8, 8))), GREY, max_pixels=64)
    with pytest.raises(ImageError, match="the image has 13x5 pixels; at most 64 pixels are decoded"):
        prepare_image(encode(Image.new("L", (13, 5))), GREY, max_pixels=64)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b"hello, I am text", "not an image", id="text"),
        pytest.param(bytes(1000), "not an image", id="zeros"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", id="postscript"),
        pytest.param(encode(Image.new("L", (9, 9)), "TIFF"), "JPEG, PNG, WEBP, GIF, BMP", id="tiff"),
    ],
)
def test_bytes_that_are_not_an_image_are_refused(encoded: bytes, message: str):
    with pytest.raises(ImageError, match=message):
        prepare_image(encoded, GREY)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_truncated_image_is_refused(image_format: str, share: float):
    encoded = encode(Image.fromarray(noise(64, 64, 3)), image_format)
    with pytest.raises(ImageError):
        prepare_image(encoded[: max(1, int(len(encoded) * share))], COLOUR)


@settings(max_examples=150, deadline=None)
@given(
    image_format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6),
)
def test_a_damaged_image_is_prepared_or_refused_but_nothing_else_happens(image_format, flips):
    encoded = bytearray(encode(Image.fromarray(noise(12, 12, 3)), image_format))
    for position, change in flips:
        encoded[position % len(encoded)] ^= change
    try:
        prepared = prepare_image(bytes(encoded), COLOUR)
    except ImageError:
        return
    assert prepared.shape == (3, 8, 8)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_prepared_or_refused(encoded: bytes):
    with pytest.raises(ImageError):
        prepare_image(encoded, GREY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("BGR", 8, 8, 8), "channel_order is 'BGR'"),
        (("L", 0, 8, 8), "at least 1 pixel"),
        (("L", 8, 9, 8), "shorter than the 8x9"),
        (("L", 8.0, 8, 8), "expected whole numbers"),
        (("L", 8, True, 8), "expected whole numbers"),
        (("L", 8, 8, "8"), "expected whole numbers"),
        (("L", 8, 8, 10**400), "at most 65536 pixels"),
    ],
)
def test_an_invalid_spec_is_refused(arguments, message: str):
    with pytest.raises(ValueError, match=message):
        ImageSpec(*arguments)


def test_decode_keeps_the_size_and_mode_asked_for():
    image = decode_image(encode(Image.new("RGB", (7, 5), (255, 0, 0))), "L")
    assert (image.size, image.mode, image.getpixel((0, 0))) == (
        (7, 5),
        "L",
        76,
    )  # ITU-R 601 luma: 0.299 * 255
