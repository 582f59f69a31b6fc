"""Decodes an image and brings it to a network's input size.

The steps: decode, JPEG at a reduced scale if the network was trained so; turn upright by the EXIF
orientation; composite transparency over white, as viewers do; convert to the colours of the network; scale
with antialiasing and crop or pad, as the network's `FitRule` says. Training on folders, evaluation, the
exporter and the server all call this one function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from foldserve.errors import ImageError
from foldserve.imaging.containers import open_picture, read_picture
from foldserve.imaging.picture import MAX_PIXELS, check_cost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.imaging.picture import Picture

# Far above any network's input; without a limit the arithmetic of sides overflows.
MAX_SIDE = 65536

ChannelOrder = Literal["L", "RGB"]
DecodeRule = Literal["full", "scaled"]
FitRule = Literal["shorter-side", "crop", "pad", "stretch"]
FIT_RULES: tuple[FitRule, ...] = ("shorter-side", "crop", "pad", "stretch")

# What a scaled JPEG keeps of the length that its sides are scaled to. At twice the length, scaling down still
# averages over pixels: of photographs the mean difference from full decoding is some 0.4 grey levels.
_KEPT_TIMES = 2

# Transposition that turns the stored image upright, by orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations from this one on swap height and width.
_QUARTER_TURN = 5
# Orientations that bring the right edge of the stored image, or its lower one, to the left or to the top.
_MIRRORED_X, _MIRRORED_Y = frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
# Compositing works on bands of about this many pixels, as Pillow blocks other threads meanwhile.
_BAND_PIXELS = 512 * 1024


@dataclass(frozen=True)
class ImageSpec:
    """The input of a network: colours, size in pixels, and how images of other sizes are scaled.

    ``fit`` is how an image becomes ``height`` x ``width`` pixels; one that has them already is not scaled:

    "crop" scales it until it covers the input, and keeps the centre.
    "pad" scales it until it lies within the input, in the centre, and mirrors it at its borders.
    "stretch" scales its sides independently.
    "shorter-side" scales its shorter side to ``resize_shorter_side`` and keeps the centre. It is "crop" for a
    square input of that side. For another input it scales too far: of an image of the input's shape at twice
    its size only the middle remains. It is the rule of networks from before there were others, and of those
    that were trained to see less than the whole, as 224 of 256 pixels.

    ``resize_shorter_side`` is the input's longer side for all but the last.

    ``decode`` "scaled" decodes a JPEG at the smallest of the scales 1, 1/2, 1/4 and 1/8 that leaves its
    shorter side at least twice as long as it is scaled to, which takes a fifth of the time for large
    photographs; "full" decodes all its pixels, and is the rule of networks that were trained so.
    """

    channel_order: ChannelOrder
    height: int
    width: int
    resize_shorter_side: int
    decode: DecodeRule = "full"
    fit: FitRule = "shorter-side"

    def __post_init__(self) -> None:
        if self.channel_order not in ("L", "RGB"):
            raise ValueError(f"channel_order is {self.channel_order!r}; expected 'L' (grey) or 'RGB'")
        if self.decode not in ("full", "scaled"):
            raise ValueError(f"decode is {self.decode!r}; expected 'full' or 'scaled'")
        if self.fit not in FIT_RULES:
            raise ValueError(f"fit is {self.fit!r}; expected {', '.join(map(repr, FIT_RULES))}")
        sides = (self.height, self.width, self.resize_shorter_side)
        if any(not isinstance(side, int) or isinstance(side, bool) for side in sides):
            raise ValueError(f"height, width and resize_shorter_side are {sides}; expected whole numbers")
        if min(self.height, self.width) < 1:
            raise ValueError(
                f"the input size is {self.height}x{self.width}; both sides must be at least 1 pixel"
            )
        if max(sides) > MAX_SIDE:
            raise ValueError(
                f"the input size is {self.height}x{self.width}, cropped from a shorter side of "
                f"{self.resize_shorter_side}; at most {MAX_SIDE} pixels are allowed"
            )
        if self.resize_shorter_side < max(self.height, self.width):
            raise ValueError(
                f"resize_shorter_side is {self.resize_shorter_side}, shorter than the "
                f"{self.height}x{self.width} that is cropped from the scaled image"
            )
        if self.fit != "shorter-side" and self.resize_shorter_side != max(self.height, self.width):
            raise ValueError(
                f"resize_shorter_side is {self.resize_shorter_side}, which {self.fit!r} has no use for; "
                f"expected {max(self.height, self.width)}, the longer side of the input"
            )

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.channel_order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one input image."""
        return (self.channels, self.height, self.width)


def prepare_image(encoded: bytes, spec: ImageSpec, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode ``encoded`` and return it as uint8 [C, H, W] with ``spec``'s colours and size.

    Raises:
        ImageError: not an image, of an unsupported format, damaged, larger than ``max_pixels`` pixels, or too
            slow to decode.
    """
    return prepare_picture(read_picture(encoded), spec, max_pixels=max_pixels)


def prepare_picture(picture: Picture, spec: ImageSpec, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode ``picture`` and return it as `prepare_image` does.

    Raises:
        ImageError: it is damaged, has more than ``max_pixels`` pixels, or takes too long to decode.
    """
    least_size = _least_size(picture, spec) if spec.decode == "scaled" else None
    decoded = _decode(picture, spec.channel_order, max_pixels, least_size)
    if decoded.size == (spec.width, spec.height):
        image = decoded.image
    elif spec.fit == "pad":
        image = decoded.scaled_to(_scaled_size(decoded.size, spec))
    else:
        image = _scale_and_cut(decoded, spec)
    pixels = np.asarray(image, dtype=np.uint8)  # [H, W] for grey, [H, W, 3] for RGB
    if spec.fit == "pad":
        pixels = _pad(pixels, spec)
    if spec.channel_order == "L":
        return np.ascontiguousarray(pixels[np.newaxis])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_image(encoded: bytes, channel_order: ChannelOrder, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode ``encoded``'s first frame, turned upright, in mode ``channel_order``, at its own size.

    Raises:
        ImageError: not an image, of an unsupported format, damaged, larger than ``max_pixels`` pixels, or too
            slow to decode.
    """
    return decode_picture(read_picture(encoded), channel_order, max_pixels=max_pixels)


def decode_picture(
    picture: Picture, channel_order: ChannelOrder, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode ``picture`` as `decode_image` does.

    Raises:
        ImageError: it is damaged, has more than ``max_pixels`` pixels, or takes too long to decode.
    """
    return _decode(picture, channel_order, max_pixels, least_size=None).image


@dataclass(frozen=True)
class _Decoded:
    """An upright image, perhaps at a reduced scale, in the colours of the network.

    Attributes:
        image: its pixels.
        size: width and height in the pixels of the file.
        left, top, width, height: the part of ``image`` that shows it. An eighth of 900 rows are the first
            112.5 of 113.
    """

    image: Image.Image
    size: tuple[int, int]
    left: float
    top: float
    width: float
    height: float

    def scaled_to(self, size: tuple[int, int]) -> Image.Image:
        """Return all of it at ``size``, width and height."""
        right = min(self.image.width, self.left + self.width)
        bottom = min(self.image.height, self.top + self.height)
        return self.image.resize(size, Image.Resampling.BILINEAR, box=(self.left, self.top, right, bottom))


def _decode(
    picture: Picture, channel_order: ChannelOrder, max_pixels: int, least_size: tuple[int, int] | None
) -> _Decoded:
    """Decode ``picture``, a JPEG at the smallest scale that leaves it ``least_size`` large, if given.

    ``least_size`` is width and height as stored, before turning upright.

    Raises:
        ImageError: it is damaged, has more than ``max_pixels`` pixels, or takes too long to decode.
    """
    check_cost(picture, max_pixels)
    try:
        opened = open_picture(picture)
        size = opened.size
        # Only JPEG has scales; the decoder leaves out the highest frequencies of each block.
        drafted = None if least_size is None else opened.draft(None, least_size)
        opened.load()
        image = _to_colours(opened, channel_order)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types on damaged files: struct.error, AssertionError, ...
        raise ImageError(f"damaged image: {str(error) or type(error).__name__}") from error
    width, height = opened.size if drafted is None else drafted[1][2:]
    if picture.orientation not in _TURNS:
        return _Decoded(image, size, 0, 0, width, height)
    image = image.transpose(_TURNS[picture.orientation])
    if picture.orientation >= _QUARTER_TURN:
        size, width, height = size[::-1], height, width
    left = image.width - width if picture.orientation in _MIRRORED_X else 0
    top = image.height - height if picture.orientation in _MIRRORED_Y else 0
    return _Decoded(image, size, left, top, width, height)


def _to_colours(image: Image.Image, channel_order: ChannelOrder) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError(f"pixels are of type {image.mode!r} (32-bit); expected 8 or 16 bits per channel")
    if image.has_transparency_data:
        return _over_white(image, channel_order)
    # Pillow's conversion to the same colours is a copy.
    return image if image.mode == channel_order else image.convert(channel_order)


def _over_white(image: Image.Image, channel_order: ChannelOrder) -> Image.Image:
    result = Image.new(channel_order, image.size)
    band_height = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, band_height):
        band = image.crop((0, top, image.width, min(image.height, top + band_height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        result.paste(Image.alpha_composite(white, band).convert(channel_order), (0, top))
    return result


def _scaled_size(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """Return to which width and height a whole image of ``size`` is scaled, before it is cut or padded."""
    if spec.fit == "stretch":
        return spec.width, spec.height
    if spec.fit == "pad":
        scale = min(spec.width / size[0], spec.height / size[1])
        width, height = (max(1, round(side * scale)) for side in size)
        return min(spec.width, width), min(spec.height, height)
    if spec.fit == "crop":
        least, scale = (spec.width, spec.height), max(spec.width / size[0], spec.height / size[1])
    else:
        least, scale = (spec.resize_shorter_side,) * 2, spec.resize_shorter_side / min(size)
    return max(least[0], round(size[0] * scale)), max(least[1], round(size[1] * scale))


def _least_size(picture: Picture, spec: ImageSpec) -> tuple[int, int]:
    """Return how large ``picture`` must be decoded, as stored: twice the size that it is scaled to."""
    size = (picture.width, picture.height)
    is_turned = picture.orientation >= _QUARTER_TURN
    scaled = _scaled_size(size[::-1] if is_turned else size, spec)
    if spec.fit != "stretch":
        # The shorter side decides: the longer one is rounded, which may miss a scale by a pixel.
        scaled = (min(scaled),) * 2
    width, height = scaled[::-1] if is_turned else scaled
    return _KEPT_TIMES * width, _KEPT_TIMES * height


def _scale_and_cut(decoded: _Decoded, spec: ImageSpec) -> Image.Image:
    image = decoded.image
    width, height = _scaled_size(decoded.size, spec)
    left, top = (width - spec.width) // 2, (height - spec.height) // 2
    # Resamples directly from the source box, so that a 20000x30 strip is never scaled to its full length.
    box = (
        decoded.left + left * decoded.width / width,
        decoded.top + top * decoded.height / height,
        min(image.width, decoded.left + (left + spec.width) * decoded.width / width),
        min(image.height, decoded.top + (top + spec.height) * decoded.height / height),
    )
    return image.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=box)


def _pad(pixels: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.uint8]:
    """Mirror ``pixels`` [H, W, ...] at their borders, again and again, until they fill the input."""
    missing = (spec.height - pixels.shape[0], spec.width - pixels.shape[1])
    borders = [(count // 2, count - count // 2) for count in missing]
    return np.pad(pixels, [*borders, *[(0, 0)] * (pixels.ndim - 2)], mode="symmetric")
