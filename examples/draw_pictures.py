"""Draws a small data set: `python examples/draw_pictures.py FOLDER` writes FOLDER/CLASS/*.png.

Circles, squares and triangles of any size, place and turn, in colour on noise.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

CORNERS = {"circle": 60, "square": 4, "triangle": 3}
SIDE = 32


def draw(shape: str, generator: random.Random) -> Image.Image:
    """Return one picture of ``shape``."""
    noise = bytes(generator.randrange(100) for _ in range(SIDE * SIDE))
    picture = Image.frombytes("L", (SIDE, SIDE), noise).convert("RGB")
    radius = generator.uniform(7, 13)
    x, y = (generator.uniform(radius, SIDE - radius) for _ in range(2))
    turn, corners = generator.uniform(0, math.tau), CORNERS[shape]
    angles = [turn + math.tau * corner / corners for corner in range(corners)]
    outline = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    colour = tuple(generator.randrange(120, 256) for _ in range(3))
    ImageDraw.Draw(picture).polygon(outline, fill=colour)
    return picture


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=200)
    options = parser.parse_args()
    generator = random.Random(0)  # noqa: S311  # pictures, not secrets
    for shape in CORNERS:
        folder = options.folder / shape
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(options.per_class):
            draw(shape, generator).save(folder / f"{number:03}.png")
    print(f"drew {options.per_class} pictures of each: {', '.join(CORNERS)}")


if __name__ == "__main__":
    main()
