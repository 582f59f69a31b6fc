"""Reads the drawing that the page's canvas sends."""

from __future__ import annotations

import base64
import binascii

from foldserve.ui.errors import UiError

_START = "data:image/png;base64,"
# 280 x 280 pixels of one colour on another; a noisy drawing of that size has 240 kB.
MAX_CHARACTERS = 1_000_000


def read_drawing(address: object) -> bytes:
    """Return the PNG file in a data: address; the server judges the picture itself.

    Raises:
        UiError: it is something else, or too long.
    """
    if not isinstance(address, str) or not address.startswith(_START) or len(address) > MAX_CHARACTERS:
        raise UiError(
            f"the drawing is not a PNG file of at most {MAX_CHARACTERS:,} characters; reload the page"
        )
    try:
        return base64.b64decode(address.removeprefix(_START), validate=True)
    except binascii.Error as error:
        raise UiError(f"the drawing is damaged ({error}); reload the page") from error
