"""A picture whose pixels are sound is read whatever its metadata is like; turned, if that can be read."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from foldserve.errors import ImageError
from foldserve.imaging import ImageSpec, prepare_image
from tests.support.crafted import (
    DOUBLE,
    FLOAT,
    LONG,
    RATIONAL,
    SHORT,
    SRATIONAL,
    SSHORT,
    chunk,
    encode,
    orientation,
    tiff,
    with_chunks,
    with_riff_chunks,
    with_segment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = ImageSpec(channel_order="RGB", height=16, width=16, resize_shorter_side=16)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)
JPEG, PNG, WEBP = (
    encode(IMAGE, "JPEG"),
    encode(IMAGE),
    encode(IMAGE, "WEBP", lossless=True, icc_profile=b"none"),
)
MEGABYTE = bytes(1_200_000)
SIX = orientation(6)

# EXIF that something is wrong with, and whether its orientation, 6 throughout, can be read.
EXIF: dict[str, tuple[bytes, bool]] = {
    "whole": (tiff(SIX), True),
    "whole, the other byte order": (tiff(orientation(6, order=">"), order=">"), True),
    "header twice": (b"Exif\0\0" + tiff(SIX), True),
    "nothing": (b"", False),
    "zeros": (bytes(24), False),
    "no TIFF": (b"garbage", False),
    "directory beyond the end": (b"II*\0" + struct.pack("<I", 9999), False),
    "cut off in a later entry": (tiff(SIX, (0x10F, 2, 400, bytes(4)))[:-9], True),
    "says more entries than there are": (tiff(SIX).replace(b"\1\0\x12\1", b"\xff\xff\x12\1"), True),
    "negative rational": (
        tiff(SIX, (0x11A, SRATIONAL, 1, b"\x26\0\0\0"), behind=struct.pack("<ii", -1, 0)),
        True,
    ),
    "unsigned rational, negative": (tiff(SIX, (0x11A, RATIONAL, 1, b"\x26\0\0\0"), behind=b"\xff" * 8), True),
    "negative number of a positive field": (tiff(SIX, (0x128, SSHORT, 1, struct.pack("<hh", -2, 0))), True),
    "text that is a number": (tiff(SIX, (0x131, FLOAT, 1, struct.pack("<f", 1.5))), True),
    "infinite number": (tiff(SIX, (0x9201, FLOAT, 1, struct.pack("<f", float("inf")))), True),
    "values beyond the end": (tiff(SIX, (0x10F, DOUBLE, 2**31, struct.pack("<I", 99_999))), True),
    "type that there is none of": (tiff(SIX, (0x10F, 77, 1, bytes(4))), True),
    "directory of EXIF that is text": (tiff(SIX, (0x8769, 2, 4, b"abc\0")), True),
    "directory of EXIF that is itself": (tiff(SIX, (0x8769, LONG, 1, struct.pack("<I", 8))), True),
    "orientation of four bytes": (tiff(orientation(6, LONG)), True),
    "orientation that is text": (tiff((0x112, 2, 2, b"6\0\0\0")), False),
    "orientation 0": (tiff(orientation(0)), False),
    "orientation 9": (tiff(orientation(9)), False),
    "orientation without a value": (tiff((0x112, SHORT, 0, b"\6\0\0\0")), False),
    "orientation elsewhere": (tiff((0x112, SHORT, 99, b"\6\0\0\0")), False),
}
XMP = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description xmlns:tiff='http://ns.adobe.com/tiff/1.0/' "
    b'tiff:Orientation="6"/></x:xmpmeta>'
)


def in_jpeg(exif: bytes) -> bytes:
    return with_segment(JPEG, b"Exif\0\0" + exif)


def in_png(exif: bytes) -> bytes:
    return with_chunks(PNG, (b"eXIf", exif))


def in_png_behind_the_data(exif: bytes) -> bytes:
    return with_chunks(PNG, (b"eXIf", exif), at_end=True)


def in_png_as_text(exif: bytes) -> bytes:
    digits = exif.hex().encode()
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(exif), digits))
    return with_chunks(PNG, (b"zTXt", text))


def in_webp(exif: bytes) -> bytes:
    return with_riff_chunks(WEBP, [(b"EXIF", exif)])


HOLDERS: list[Callable[[bytes], bytes]] = [in_jpeg, in_png, in_png_behind_the_data, in_png_as_text, in_webp]


def upright(holder: Callable[[bytes], bytes]) -> np.ndarray:
    return prepare_image({"in_jpeg": JPEG, "in_webp": WEBP}.get(holder.__name__, PNG), SPEC)


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__)
@pytest.mark.parametrize("case", EXIF.values(), ids=EXIF.keys())
def test_exif_turns_the_picture_or_is_ignored(case: tuple[bytes, bool], holder: Callable[[bytes], bytes]):
    exif, turned = case
    expected = upright(holder)
    if turned:
        expected = np.rot90(expected, -1, axes=(1, 2))
    assert np.array_equal(prepare_image(holder(exif), SPEC), expected)


@given(exif=st.binary(max_size=200), at=st.integers(0, 60))
@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__)
def test_any_exif_leaves_the_picture_readable(holder: Callable[[bytes], bytes], exif: bytes, at: int):
    whole = tiff(SIX, (0x10F, 2, 3, b"ab\0\0"))
    for content in (exif, whole[:at] + exif[:8] + whole[at + 8 :]):
        prepare_image(holder(content), SPEC)


@given(
    value=st.integers(0, 10),
    order=st.sampled_from("<>"),
    before=st.lists(st.integers(1, 0x0111), max_size=4),
)
def test_whole_exif_is_read_as_pillow_reads_it(value: int, order: str, before: list[int]):
    entries = [(tag, SHORT, 1, struct.pack(f"{order}HH", 7, 0)) for tag in before]
    encoded = with_chunks(PNG, (b"eXIf", tiff(*entries, orientation(value, order=order), order=order)))
    with Image.open(io.BytesIO(encoded)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    assert np.array_equal(prepare_image(encoded, SPEC), expected)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(with_segment(JPEG, b"http://ns.adobe.com/xap/1.0/\0" + XMP), id="JPEG"),
        pytest.param(with_chunks(PNG, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), id="PNG"),
        pytest.param(
            with_chunks(PNG, (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
            id="packed in a PNG",
        ),
        pytest.param(with_riff_chunks(WEBP, [(b"XMP ", XMP)]), id="WebP"),
    ],
)
def test_xmp_turns_the_picture_where_exif_does_not(encoded: bytes):
    plain = prepare_image({b"\xff\xd8": JPEG, b"RI": WEBP}.get(encoded[:2], PNG), SPEC)
    assert np.array_equal(prepare_image(encoded, SPEC), np.rot90(plain, -1, axes=(1, 2)))


def bad_checksum(png: bytes) -> bytes:
    position = png.index(b"tEXt") + 4 + len(b"Comment\0hello")
    return png[:position] + bytes(4) + png[position + 4 :]


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([(b"iCCP", b"ICC Profile\0\0" + zlib.compress(MEGABYTE))], id="profile of a megabyte"),
        pytest.param([(b"iCCP", b"ICC Profile\0\0no zlib")], id="profile that is none"),
        pytest.param([(b"zTXt", b"Comment\0\0" + zlib.compress(MEGABYTE))], id="text of a megabyte"),
        pytest.param(
            [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MEGABYTE))], id="XMP of a megabyte"
        ),
        pytest.param([(b"zTXt", b"C\0\0" + zlib.compress(bytes(10**6)))] * 70, id="70 megabytes of text"),
        pytest.param([(b"zTXt", b"Comment\0\0garbage")], id="text that does not unpack"),
        pytest.param([(b"tEXt", b"Raw profile type exif\0\nexif\n  20\nzz")], id="digits that are none"),
        pytest.param([(b"tEXt", b"no keyword")], id="text without a keyword"),
        pytest.param([(b"pHYs", b""), (b"gAMA", b"\0"), (b"cHRM", b"x"), (b"acTL", b"")], id="empty chunks"),
        pytest.param([(b"acTL", bytes(8)), (b"fcTL", bytes(26)), (b"fdAT", b"")], id="animation of nothing"),
    ],
)
@pytest.mark.parametrize("at_end", [False, True], ids=["before the data", "behind it"])
def test_png_chunks_that_do_not_affect_pixels_are_ignored(chunks, at_end: bool):
    encoded = with_chunks(PNG, *chunks, at_end=at_end)
    assert np.array_equal(prepare_image(encoded, SPEC), PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(bad_checksum(with_chunks(PNG, (b"tEXt", b"Comment\0hello"))), id="checksum of a text"),
        pytest.param(PNG[:-12], id="no end"),
        pytest.param(PNG + b"more", id="more behind the end"),
        pytest.param(b"\r\n " + PNG, id="white space before"),
    ],
)
def test_metadata_around_the_pixels_of_a_png_is_ignored(encoded: bytes):
    assert np.array_equal(prepare_image(encoded, SPEC), PIXELS.transpose(2, 0, 1))


def mpo() -> bytes:
    return encode(IMAGE, "MPO", save_all=True, append_images=[IMAGE.rotate(90)], quality=75)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(with_segment(JPEG, b"ICC_PROFILE\0\1\2garbage", 0xE2), id="half a profile"),
        pytest.param(with_segment(JPEG, b"MPF\0garbage", 0xE2), id="several images that are none"),
        pytest.param(with_segment(JPEG, b"Photoshop 3.0\x008BIM\4", 0xED), id="Photoshop's, cut off"),
        pytest.param(with_segment(JPEG, b"", 0xFE), id="empty comment"),
        pytest.param(with_segment(JPEG, b"", 0xE5), id="empty segment"),
        pytest.param(JPEG[:2] + b"\xff\xff\xff" + JPEG[2:], id="fill bytes"),
        pytest.param(JPEG[:2] + b"\xff\xe5\0\0" + JPEG[2:], id="length of nothing"),
        pytest.param(JPEG + b"garbage" * 100, id="more behind the end"),
        pytest.param(b"\n" + JPEG, id="white space before"),
        pytest.param(mpo(), id="two images in one file"),
        pytest.param(mpo()[:-200], id="two images, the second cut off"),
    ],
)
def test_metadata_around_the_pixels_of_a_jpeg_is_ignored(encoded: bytes):
    assert np.array_equal(prepare_image(encoded, SPEC), prepare_image(JPEG, SPEC))


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(PNG[:-40], id="PNG"),
        pytest.param(with_chunks(PNG[:-40] + PNG[-12:], (b"eXIf", tiff(SIX))), id="PNG with its end"),
        pytest.param(JPEG[:-2], id="JPEG"),
        pytest.param(with_segment(JPEG[:-60], b"Exif\0\0" + tiff(SIX)), id="JPEG with EXIF"),
        pytest.param(encode(IMAGE, "WEBP", lossless=True)[:-20], id="WebP"),
    ],
)
def test_pixels_that_are_cut_off_are_refused(encoded: bytes):
    with pytest.raises(ImageError, match="damaged image"):
        prepare_image(encoded, SPEC)


def test_checksum_of_the_header_counts():
    with pytest.raises(ImageError, match="damaged image"):
        prepare_image(PNG[:29] + bytes(4) + PNG[33:], SPEC)


def test_data_in_many_chunks_is_one():
    start, end = PNG.index(b"IDAT") + 4, len(PNG) - 16
    pieces = [chunk(b"IDAT", PNG[at : min(at + 7, end)]) for at in range(start, end, 7)]
    encoded = PNG[: start - 8] + b"".join(pieces) + PNG[-12:]
    assert np.array_equal(prepare_image(encoded, SPEC), PIXELS.transpose(2, 0, 1))


def test_no_library_warns_or_logs_of_a_picture(caplog: pytest.LogCaptureFixture):
    """In threads at once, as decoding runs: which warnings are shown is state of the whole process."""
    files = [holder(exif) for holder in HOLDERS for exif, _ in EXIF.values()]
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda file: prepare_image(file, SPEC), files))
    assert not caught
    assert not caplog.records
