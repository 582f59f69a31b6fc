"""Recognises the format of an encoded image and opens it with Pillow's plugin for that format."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from foldserve.errors import ImageError
from foldserve.imaging import jpeg_segments, png_chunks
from foldserve.imaging.other_containers import read_bmp, read_gif, read_webp

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.ImageFile import ImageFile

    from foldserve.imaging.picture import Picture

# Used directly: Image.open warns of large images and tries several plugins.
_PLUGINS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}
_READERS = (
    (jpeg_segments.SIGNATURE, jpeg_segments.read_jpeg),
    (png_chunks.SIGNATURE, png_chunks.read_png),
    (b"GIF87a", read_gif),
    (b"GIF89a", read_gif),
    (b"BM", read_bmp),
)
# Some web servers write white space before a picture.
_WHITE_SPACE = b" \t\r\n"


def read_picture(encoded: bytes) -> Picture:
    """Return the parts of ``encoded`` that its pixels depend on, and the cost of decoding them.

    Raises:
        ImageError: not an image, of an unsupported format, or visibly damaged.
    """
    if not encoded:
        raise ImageError("the image is empty (0 bytes)")
    if encoded[0] in _WHITE_SPACE:
        encoded = encoded.lstrip(_WHITE_SPACE)
    try:
        picture = _reader(encoded)(encoded)
    except (struct.error, IndexError):
        raise ImageError(f"damaged image: its {len(encoded)} bytes end in the header") from None
    if not picture.pixel_count:
        raise ImageError(f"damaged image: its header says {picture.width}x{picture.height} pixels")
    return picture


def _reader(encoded: bytes) -> Callable[[bytes], Picture]:
    for signature, read in _READERS:
        if encoded.startswith(signature):
            return read
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return read_webp
    raise ImageError(f"not an image in a known format (expected one of {', '.join(_PLUGINS)})")


def open_picture(picture: Picture) -> ImageFile:
    """Return ``picture`` opened by Pillow, not yet decoded.

    Raises:
        ImageError: Pillow finds another size than the one by which the cost was judged.
        Exception: Pillow's own errors.
    """
    opened = _PLUGINS[picture.kind](io.BytesIO(picture.content))
    if opened.size != (picture.width, picture.height):
        raise ImageError(
            f"damaged image: it says {picture.width}x{picture.height} pixels in one place and "
            f"{opened.width}x{opened.height} in another"
        )
    return opened
