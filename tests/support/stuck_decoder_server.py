"""`foldserve serve` with a fault injected: decoding never ends where an image is 77 pixels wide."""

import sys
import time
from typing import Any

from foldserve.cli import main
from foldserve.imaging import Picture
from foldserve.serving.services import image_decoder

_prepare = image_decoder.prepare_picture


def _prepare_or_hang(picture: Picture, *arguments: Any, **options: Any) -> Any:
    if picture.width == 77:
        time.sleep(3600)
    return _prepare(picture, *arguments, **options)


if __name__ == "__main__":
    image_decoder.prepare_picture = _prepare_or_hang
    sys.exit(main())
