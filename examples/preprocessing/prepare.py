"""Prepares images as foldserve does, with numpy and Pillow alone, and checks itself: `python prepare.py`.

A client that sends pixels instead of files needs this function, in its own language. The rule is in the
metadata of every model: ``channel_order``, and ``resize`` as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def prepare(encoded: bytes, rule: dict[str, Any]) -> NDArray[np.uint8]:
    """Return an image file as uint8 [C, H, W]."""
    fit = rule["resize"].get("fit")
    height, width = rule["resize"]["crop"]
    image: Image.Image = Image.open(io.BytesIO(encoded))
    whole = image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    is_turned = orientation in range(5, 9)  # a quarter turn
    scaled = scaled_size(whole[::-1] if is_turned else whole, rule["resize"])
    # 1. A JPEG may be decoded at 1/2, 1/4 or 1/8, as long as its shorter side stays twice as long as it is
    #    scaled to; if it is stretched, as long as both sides do. The last column and row may then stand for
    #    less than a whole pixel.
    shown: tuple[float, float] = whole
    if rule["resize"].get("decode") == "scaled" and image.format == "JPEG":
        least = scaled if fit == "stretch" else (min(scaled), min(scaled))
        least = least[::-1] if is_turned else least
        drafted = image.draft(None, (2 * least[0], 2 * least[1]))
        shown = drafted[1][2:] if drafted else whole
    # 2. Colours: the high byte of 16 bits, transparency over white, then grey or RGB.
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert(rule["channel_order"])
    # 3. Upright.
    left = top = 0.0
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        if is_turned:
            whole, shown = whole[::-1], shown[::-1]
        left = image.width - shown[0] if orientation in (2, 3, 6, 7) else 0.0
        top = image.height - shown[1] if orientation in (3, 4, 7, 8) else 0.0
    # 4. Scale, with antialiasing, and take the centre; unless the size is right.
    if whole != (width, height):
        width, height = min(width, scaled[0]), min(height, scaled[1])  # to be padded, if that is less
        x, y = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        box = (
            left + x * shown[0] / scaled[0],
            top + y * shown[1] / scaled[1],
            min(image.width, left + (x + width) * shown[0] / scaled[0]),
            min(image.height, top + (y + height) * shown[1] / scaled[1]),
        )
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image, np.uint8)
    # 5. Mirror at the borders, the outermost pixels too, until the input is full.
    if fit == "pad":
        missing = [want - have for want, have in zip(rule["resize"]["crop"], pixels.shape, strict=False)]
        borders = [(count // 2, count - count // 2) for count in missing]
        pixels = np.pad(pixels, [*borders, (0, 0)][: pixels.ndim], mode="symmetric")
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def scaled_size(whole: tuple[int, int], resize: dict[str, Any]) -> tuple[int, int]:
    """Return to which width and height a whole image is scaled, before its centre is taken."""
    height, width = resize["crop"]
    fit = resize.get("fit")
    if fit == "stretch":
        return width, height
    if fit == "pad":
        scale = min(width / whole[0], height / whole[1])
        return tuple(
            min(most, max(1, round(length * scale)))
            for most, length in zip((width, height), whole, strict=True)
        )
    least = (width, height) if fit == "crop" else (resize["shorter_side"],) * 2
    scale = max(width / whole[0], height / whole[1]) if fit == "crop" else least[0] / min(whole)
    return max(least[0], round(whole[0] * scale)), max(least[1], round(whole[1] * scale))


def main() -> int:
    """Compare with every vector; return 0 if all are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().folder
    manifest = json.loads((folder / "manifest.json").read_text())
    wrong = 0
    for vector in manifest["vectors"]:
        tensor = prepare((folder / vector["image"]).read_bytes(), manifest["rules"][vector["rule"]])
        expected = np.fromfile(folder / vector["tensor"], np.uint8).reshape(vector["shape"])
        if not np.array_equal(tensor, expected):
            difference = np.abs(tensor.astype(int) - expected)
            print(
                f"{vector['tensor']}: {vector['about']}: up to {difference.max()} grey levels",
                file=sys.stderr,
            )
            wrong += 1
    print(f"{len(manifest['vectors']) - wrong} of {len(manifest['vectors'])} tensors are equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
