"""A small file that takes long to decode is refused before it is; nothing that any camera writes is."""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foldserve.errors import ImageError
from foldserve.imaging import ImageSpec, prepare_image, read_picture
from tests.support.crafted import chunk, encode, jpeg_of_scans, segment, tiff, with_chunks

if TYPE_CHECKING:
    from foldserve.imaging import FitRule

SPEC = ImageSpec(channel_order="RGB", height=8, width=8, resize_shorter_side=8)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
JPEG, PNG = encode(IMAGE, "JPEG"), encode(IMAGE)
GIF = encode(IMAGE.convert("L"), "GIF")
PALETTE = encode(IMAGE.quantize(4), "PNG", transparency=1)
AFTER_PALETTE = 13 + (3 << (GIF[10] & 7) + 1)
TABLE = JPEG[JPEG.index(b"\xff\xdb") : JPEG.index(b"\xff\xdb") + 69]
# Far above what any of it takes, as long as it is bounded, and far below minutes.
LIMIT_S = 10.0


def run_lengths(side: int, content: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(content), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(content), 0, 0, 1078) + header + bytes(1024) + content


def arithmetic_jpeg_of_scans(side: int, scan_count: int) -> bytes:
    encoded = jpeg_of_scans(side, scan_count)
    return encoded.replace(b"\xff\xc2", b"\xff\xca", 1)


EXCESSIVE = {
    "scans of a large image": (lambda: jpeg_of_scans(8000, 8000), "8000x8000 pixels come in 8,00. scans"),
    "scans that are few enough for a small image": (
        lambda: jpeg_of_scans(8000, 80),
        "scans, which takes too long",
    ),
    "scans of a small image": (
        lambda: jpeg_of_scans(8, 50_000),
        "scans, which takes too long|more than 100,000 parts",
    ),
    "arithmetic coding": (lambda: arithmetic_jpeg_of_scans(8000, 5), "scans, which takes too long"),
    "empty segments": (lambda: JPEG[:2] + b"\xff\xe5\0\2" * 200_000 + JPEG[2:], "more than 100,000 parts"),
    "tables": (lambda: JPEG[:2] + TABLE * 50_000 + JPEG[2:], "bytes of tables"),
    "chunks": (lambda: with_chunks(PNG, *[(b"teXt", b"")] * 200_000), "more than 100,000 parts"),
    "nothing before an image": (
        lambda: GIF[:AFTER_PALETTE] + bytes(2**20) + GIF[AFTER_PALETTE:],
        "more than 100,000 parts",
    ),
    "run lengths of nothing": (lambda: run_lengths(8, bytes(2**22)), "a run-length encoded BMP"),
    "run lengths of a large image": (lambda: run_lengths(8000, b"\1\1"), "a run-length encoded BMP"),
}


@pytest.mark.parametrize("case", EXCESSIVE.values(), ids=EXCESSIVE.keys())
def test_excessive_work_is_refused_before_decoding(case, monkeypatch: pytest.MonkeyPatch):
    make, message = case
    encoded = make()

    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("foldserve.imaging.prepare.open_picture", decode)
    with pytest.raises(ImageError, match=message):
        prepare_image(encoded, SPEC)


def frame(width: int, height: int) -> bytes:
    """A frame header of a grey JPEG."""
    return segment(struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0", marker=0xC0)


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


# The decoder takes one of the sizes, so the cost must not be judged by another.
TWO_SIZES = {
    "a PNG's header before it": PNG[:8] + header(1, 1) + PNG[8:],
    "a PNG's header behind it": PNG[:33] + header(1, 1) + PNG[33:],
    "another chunk before a PNG's header": PNG[:8] + chunk(b"abCd", struct.pack(">II", 1, 1)) + PNG[8:],
    "a JPEG's frame before it": JPEG[:2] + frame(1, 1) + JPEG[2:],
    "a JPEG's frame behind it": JPEG[: JPEG.index(b"\xff\xda")]
    + frame(1, 1)
    + JPEG[JPEG.index(b"\xff\xda") :],
    "a JPEG's frame behind the scan": JPEG[:-2] + frame(1, 1) + JPEG[-2:],
}


@pytest.mark.parametrize("encoded", TWO_SIZES.values(), ids=TWO_SIZES.keys())
def test_a_size_that_hides_another_passes_no_limit(encoded: bytes):
    for max_pixels in (10, 63):
        with pytest.raises(ImageError, match=r"8x8|does not begin with its header"):
            prepare_image(encoded, SPEC, max_pixels=max_pixels)


def with_size(encoded: bytes, place: int, form: str, width: int, height: int) -> bytes:
    return encoded[:place] + struct.pack(form, width, height) + encoded[place + struct.calcsize(form) :]


WEBP, BMP = encode(IMAGE, "WEBP"), encode(IMAGE, "BMP")
GIF_FRAME = GIF.index(b"\x2c", AFTER_PALETTE) + 5
SIZES = {
    "PNG": lambda *size: with_size(PNG, 16, ">II", *size),
    "JPEG": lambda *size: with_size(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", *reversed(size)),
    "GIF": lambda *size: with_size(with_size(GIF, 6, "<HH", *size), GIF_FRAME, "<HH", *size),
    "WEBP": lambda *size: with_size(WEBP, 26, "<HH", *size),
    "BMP": lambda *size: with_size(BMP, 18, "<ii", *size),
}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("size", [(0, 8), (8, 0), (0, 0)])
@pytest.mark.parametrize("fit", ["shorter-side", "crop", "pad", "stretch"])
def test_a_picture_without_pixels_is_refused(kind: str, size: tuple[int, int], fit: FitRule):
    spec = replace(SPEC, decode="scaled", fit=fit)
    assert prepare_image(SIZES[kind](8, 8), spec).shape == (3, 8, 8)
    with pytest.raises(ImageError, match=f"damaged image: its header says {size[0]}x{size[1]} pixels"):
        prepare_image(SIZES[kind](*size), spec)


def test_a_missing_palette_is_damage():
    palette = Image.new("P", (8, 8))
    palette.putpalette(bytes(768))
    encoded = encode(palette, "PNG")
    place = encoded.index(b"PLTE") - 4
    assert prepare_image(encoded, SPEC).shape == (3, 8, 8)
    without = encoded[:place] + encoded[place + 12 + struct.unpack_from(">I", encoded, place)[0] :]
    with pytest.raises(ImageError, match="damaged image: "):
        prepare_image(without, SPEC)


HEAD_BYTES = 300


@given(data=st.data())
def test_whatever_is_damaged_is_refused_or_decoded(data: st.DataObject):
    """Only ImageError, and of what the limit allows: anything else would end a decoding process."""
    encoded = bytearray(data.draw(st.sampled_from([JPEG, PNG, GIF, WEBP, BMP, PALETTE])))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(HEAD_BYTES, len(encoded)) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "double"]))
        if kind == "set":
            encoded[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del encoded[place : place + data.draw(st.integers(1, 40))]
        else:
            encoded[place:place] = encoded[place : place + data.draw(st.integers(1, 40))]
        if not encoded:
            return
    fit = data.draw(st.sampled_from(["shorter-side", "crop", "pad", "stretch"]))
    decode = data.draw(st.sampled_from(["full", "scaled"]))
    try:
        pixels = prepare_image(bytes(encoded), replace(SPEC, decode=decode, fit=fit), max_pixels=10_000)
    except ImageError:
        return
    assert pixels.shape == SPEC.shape


def many_entries() -> bytes:
    """EXIF of a directory whose 65,535 entries each claim all of what follows: 1.5 TB to copy."""
    entries = [(tag, 7, 20_000_000, struct.pack("<I", 100)) for tag in range(65_535)]
    return tiff(*entries, behind=bytes(22_000_000))


def unpacks_to_much() -> bytes:
    packer = zlib.compressobj(9)
    content = [packer.compress(bytes(8 * 25))] + [packer.compress(bytes(2**20)) for _ in range(300)]
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    data = b"".join(content) + packer.flush()
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def comments() -> bytes:
    return GIF[:AFTER_PALETTE] + b"!\xfe" + (b"\xff" + b"c" * 255) * 100_000 + b"\0" + GIF[AFTER_PALETTE:]


def frames(image_format: str) -> bytes:
    others = [Image.new("RGB", (8, 8), (index % 256, 255 - index % 256, 7)) for index in range(3000)]
    return encode(IMAGE, image_format, save_all=True, append_images=others)


def jpeg_with_long_exif() -> bytes:
    exif = many_entries()
    pieces = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    return JPEG[:2] + b"".join(segment(b"Exif\0\0" + piece) for piece in pieces) + JPEG[2:]


BOUNDED = {
    "EXIF in a JPEG": jpeg_with_long_exif,
    "EXIF in a PNG": lambda: with_chunks(PNG, (b"eXIf", many_entries())),
    "EXIF in a WebP": lambda: encode(IMAGE, "WEBP", exif=many_entries()),
    "texts that unpack to gigabytes": lambda: with_chunks(
        PNG, *[(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(10**8), 9))] * 20
    ),
    "pixels that unpack to 300 megabytes": unpacks_to_much,
    "comments": comments,
    "frames of a GIF": lambda: frames("GIF"),
    "frames of a WebP": lambda: frames("WEBP"),
    "fill bytes": lambda: JPEG[:2] + b"\xff" * 2**23 + JPEG[2:],
}


@pytest.mark.parametrize("make", BOUNDED.values(), ids=BOUNDED.keys())
def test_metadata_made_to_be_expensive_costs_little(make):
    encoded = make()
    started_s = time.thread_time()  # of this thread's processor: however busy the machine is
    assert prepare_image(encoded, SPEC).shape == SPEC.shape
    assert time.thread_time() - started_s < LIMIT_S


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        pytest.param("RGB", {"progressive": True}, id="progressive"),
        pytest.param("CMYK", {"progressive": True}, id="progressive, four colours"),
        pytest.param("L", {"progressive": True, "optimize": True}, id="progressive, grey"),
        pytest.param("RGB", {"restart_marker_rows": 1}, id="restarts"),
    ],
)
def test_usual_scans_are_decoded_up_to_the_largest_image(mode: str, options):
    picture = read_picture(encode(Image.new(mode, (16, 16)), "JPEG", **options))
    assert picture.passes <= 20
    largest = type(picture)("JPEG", b"", 8192, 8192, passes=picture.passes)
    assert largest.work < type(picture)("JPEG", b"", 8192, 8192, passes=48).work


def test_more_scans_than_encoders_write_are_decoded():
    encoded = jpeg_of_scans(64, 60)
    assert read_picture(encoded).passes > 60
    assert np.all(prepare_image(encoded, SPEC) == 128)


@pytest.mark.parametrize("size", [(3000, 700), (1, 900_000), (900_000, 1), (7, 5)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white_in_every_band(size: tuple[int, int], mode: str):
    """White is laid behind a part of the rows at a time."""
    image = Image.new(mode, size, (0,) * len(mode))
    assert np.all(prepare_image(encode(image), SPEC) == 255)
