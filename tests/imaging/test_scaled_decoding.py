"""JPEG decoded at the smallest scale that keeps twice the size needed is close to JPEG decoded in full."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from foldserve.imaging import MAX_PIXELS, ImageSpec, prepare_image, read_picture
from foldserve.imaging.prepare import _decode
from tests.support.encoded_images import photograph

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Grey levels of 255. (If the rows that a scale rounds up to were taken for whole ones: 7.6 and 46.)
_MEAN, _LARGEST = 0.7, 5


def spec_of(side: int, decode: str, order: str = "RGB") -> ImageSpec:
    return ImageSpec(order, side, side, side + side // 7, decode)


@cache
def photo(width: int, height: int) -> Image.Image:
    return photograph(width, height)


def encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def difference(encoded: bytes, side: int, order: str = "RGB") -> NDArray[np.int64]:
    """Return by how many grey levels a picture differs, decoded by either rule."""
    full, scaled = (
        prepare_image(encoded, spec_of(side, decode, order)).astype(int) for decode in ("full", "scaled")
    )
    return np.abs(full - scaled)


@pytest.mark.parametrize(
    ("size", "least_side", "expected"),
    [
        pytest.param((1600, 1200), 512, (800, 600), id="a half"),
        pytest.param((1200, 1600), 512, (600, 800), id="a half, upright"),
        pytest.param((1600, 1200), 300, (400, 300), id="a quarter, exactly"),
        pytest.param((1600, 1200), 301, (800, 600), id="no quarter for a pixel"),
        pytest.param((1601, 1203), 56, (201, 151), id="an eighth at most, rounded up"),
        pytest.param((500, 375), 512, (500, 375), id="too small"),
        pytest.param((1600, 40), 56, (1600, 40), id="a strip"),
    ],
)
def test_the_smallest_scale_that_keeps_the_length_is_chosen(
    size: tuple[int, int], least_side: int, expected: tuple[int, int]
) -> None:
    picture = read_picture(encode(photo(*size)))
    assert _decode(picture, "RGB", MAX_PIXELS, (least_side, least_side)).image.size == expected


def test_pictures_keep_twice_the_length_that_they_are_scaled_to(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    resize = Image.Image.resize

    def watch(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(image.size)
        return resize(image, *arguments, **options)

    encoded, small = encode(photo(1600, 1200)), encode(photo(77, 64))
    monkeypatch.setattr(Image.Image, "resize", watch)
    prepare_image(encoded, ImageSpec("RGB", 224, 224, 256, "scaled"))
    prepare_image(encoded, ImageSpec("RGB", 224, 224, 256, "full"))
    # Its longer side is scaled to 9.6 pixels, rounded up to 10, and would not leave twice that at a quarter.
    prepare_image(small, ImageSpec("RGB", 8, 8, 8, "scaled"))
    assert sizes == [(800, 600), (1600, 1200), (20, 16)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [28, 64, 224])
def test_turned_pictures_differ_by_little(orientation: int, side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    differences = difference(encode(photo(1200, 900), exif=exif), side)
    assert differences.mean() < _MEAN
    assert differences.max() <= _LARGEST


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        pytest.param("RGB", {"subsampling": "4:4:4"}, id="colour at full size"),
        pytest.param("RGB", {"subsampling": "4:2:0"}, id="colour at half size"),
        pytest.param("RGB", {"progressive": True}, id="progressive"),
        pytest.param("RGB", {"restart_marker_rows": 1}, id="restart markers"),
        pytest.param("L", {}, id="grey"),
        pytest.param("L", {"progressive": True}, id="grey, progressive"),
        pytest.param("CMYK", {}, id="CMYK"),
    ],
)
@pytest.mark.parametrize("size", [(1601, 1203), (640, 480), (300, 900)], ids=str)
@pytest.mark.parametrize("order", ["L", "RGB"])
def test_pictures_of_any_kind_differ_by_little(
    mode: str, options: dict[str, Any], size: tuple[int, int], order: str
) -> None:
    differences = difference(encode(photo(*size).convert(mode), **options), 56, order)
    assert differences.mean() < _MEAN
    assert differences.max() <= _LARGEST


def test_a_scale_too_small_differs_by_much() -> None:
    """The twin: with half the length that the rule keeps, or the wrong turn, the bounds do not hold."""
    encoded = encode(photo(1200, 900))
    full = prepare_image(encoded, spec_of(64, "full")).astype(int)
    small = _decode(read_picture(encoded), "RGB", MAX_PIXELS, (37, 37)).image.resize((1200, 900))
    wrong = prepare_image(encode(small), spec_of(64, "full")).astype(int)
    assert np.abs(full - wrong).mean() > _MEAN
    turned = np.abs(full - full[:, ::-1])
    assert turned.mean() > 10 * _MEAN


def test_rows_that_a_scale_rounds_up_to_are_not_taken_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the turned pictures: 900 rows at an eighth are 112.5, in an image of 113."""
    encoded = encode(photo(1200, 900))
    assert difference(encoded, 28).max() <= _LARGEST
    draft = JpegImageFile.draft

    def whole(image: JpegImageFile, *arguments: Any) -> Any:
        return draft(image, *arguments) and ("RGB", (0, 0, *image.size))

    monkeypatch.setattr(JpegImageFile, "draft", whole)
    assert difference(encoded, 28).max() > _LARGEST


def test_decoding_in_full_is_what_it_was() -> None:
    """Files from before the rule stay bit-exact: all pixels are decoded, and scaled in one step."""
    encoded = encode(photo(1600, 1200))
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = (10 * 1600 / 85, 0, 74 * 1600 / 85, 1200)  # the middle 64 of 85 columns
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    for decode, is_same in (("full", True), ("scaled", False)):
        prepared = prepare_image(encoded, ImageSpec("RGB", 64, 64, 64, decode))
        assert np.array_equal(prepared, expected) == is_same
    assert ImageSpec("RGB", 64, 64, 64).decode == "full"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_other_formats_are_decoded_in_full(kind: str) -> None:
    buffer = io.BytesIO()
    photo(640, 480).save(buffer, kind)
    assert difference(buffer.getvalue(), 28).max() == 0


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="decode is 'half'; expected 'full' or 'scaled'"):
        ImageSpec("RGB", 8, 8, 8, "half")  # type: ignore[arg-type]
