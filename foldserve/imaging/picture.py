"""Describes an image file before it is decoded: the bytes its pixels depend on, and the cost of decoding.

Readers walk through a file once and drop its metadata, which may be damaged or made to be expensive and,
apart from the orientation, does not affect the pixels. The cost is then known and can be limited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.imaging.orientation import UPRIGHT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeVar

    Piece = TypeVar("Piece")

# 64 megapixels: above any camera in common use, and at most some 256 MiB while decoding.
MAX_PIXELS = 64 * 1024 * 1024
# Number of passes over the pixels. A progressive JPEG has some 10 scans, an optimised one 20.
MAX_PASSES = 100
# In pixels, see Picture.work: some 3 s of a CPU. 48 scans of the largest image, 100 of 37 megapixels.
MAX_WORK = 4 * MAX_PIXELS
# A pass that changes no pixel costs 0.6 ns per pixel; decoding costs about 10 ns.
_PASS_SHARE = 1 / 16
# Segments, chunks or blocks per file; each costs a microsecond. 32 MiB in parts of 330 bytes.
_MAX_PIECES = 100_000


@dataclass(frozen=True)
class Picture:
    """An encoded image without its metadata.

    Attributes:
        kind: the format, as in FORMATS.
        content: the file without the bytes that do not affect the pixels.
        width, height: in pixels, as stored, before turning upright.
        passes: number of times that the decoder goes over the pixels.
        orientation: 1 to 8, as EXIF defines them.
    """

    kind: str
    content: bytes
    width: int
    height: int
    passes: int = 1
    orientation: int = UPRIGHT

    @property
    def pixel_count(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def work(self) -> int:
        """Cost of decoding, as the number of pixels of a one-pass image (some 10 to 50 ns each)."""
        return int(self.pixel_count * (1 + self.passes * _PASS_SHARE))


def check_cost(picture: Picture, max_pixels: int) -> None:
    """Check that decoding ``picture`` takes limited memory and time.

    Raises:
        ImageError: it has more than ``max_pixels`` pixels, or too many scans for its size.
    """
    size = f"{picture.width}x{picture.height}"
    if picture.pixel_count > max_pixels:
        raise ImageError(f"the image has {size} pixels; at most {max_pixels:,} pixels are decoded")
    if picture.passes > MAX_PASSES or picture.work > MAX_WORK:
        raise ImageError(
            f"the image's {size} pixels come in {picture.passes:,} scans, which takes too long to decode; at "
            f"most {MAX_PASSES} scans are allowed, fewer for a large image: save it again with fewer scans"
        )


def counted(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the ``pieces`` of a file.

    Raises:
        ImageError: there are too many.
    """
    for count, piece in enumerate(pieces):
        if count == _MAX_PIECES:
            raise ImageError(f"the file has more than {_MAX_PIECES:,} parts; save the image again")
        yield piece
