"""What of an image file its pixels depend on, found before anything is decoded.

A file is walked once. Metadata is left out, damaged or made to be expensive: but for the orientation, it
says nothing of the pixels. What decoding would cost is known then, and bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imaging.errors import ImageError
from imaging.orientation import UPRIGHT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeVar

    Piece = TypeVar("Piece")

# 64 megapixels: above any camera in common use, and at most some 256 MiB while decoding.
MAX_PIXELS = 64 * 1024 * 1024
# Times that a decoder may go over the pixels. A progressive JPEG has some 10 scans, an optimised one 20.
MAX_PASSES = 100
# In pixels, see Picture.work: some 3 s of a processor. 48 scans of the largest image, 100 of 37 megapixels.
MAX_WORK = 4 * MAX_PIXELS
# A pass over the pixels that changes none costs 0.6 ns each; decoding them costs about 10.
_PASS_SHARE = 1 / 16
# Segments, chunks or blocks of one file, each of which costs a microsecond: 32 MiB in pieces of 330 bytes.
_MAX_PIECES = 100_000


@dataclass(frozen=True)
class Picture:
    """An encoded image without its metadata.

    Attributes:
        kind: the format, as in FORMATS.
        content: the file with nothing in it that the pixels do not depend on.
        width, height: in pixels, as they are stored.
        passes: times that decoding goes over the pixels.
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
        """How long decoding takes, in pixels of an image in one pass (some 10 to 50 ns each)."""
        return int(self.pixel_count * (1 + self.passes * _PASS_SHARE))


def check_cost(picture: Picture, max_pixels: int) -> None:
    """Check that ``picture`` can be decoded in bounded memory and time.

    Raises:
        ImageError: it has more than ``max_pixels`` pixels, or its decoder would go over them too often.
    """
    size = f"{picture.width}x{picture.height}"
    if picture.pixel_count > max_pixels:
        raise ImageError(f"the image has {size} pixels; at most {max_pixels:,} pixels are decoded")
    if picture.passes > MAX_PASSES or picture.work > MAX_WORK:
        raise ImageError(
            f"the image's {size} pixels come in {picture.passes:,} scans, which takes too long to decode; at "
            f"most {MAX_PASSES} are, and fewer of a large image: save it again, with fewer"
        )


def counted(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield ``pieces`` of a file.

    Raises:
        ImageError: there are more than any image needs.
    """
    for count, piece in enumerate(pieces):
        if count == _MAX_PIECES:
            raise ImageError(f"the file has more than {_MAX_PIECES:,} parts; save the image again")
        yield piece
