"""`python -m docsite.figures`: draws docs/images/*.svg anew."""

from __future__ import annotations

import sys
from pathlib import Path

from docsite.figures import batch_life, folding, receptive_fields, way_through

FOLDER = Path(__file__).parents[2] / "docs" / "images"

FIGURES = {
    "way-through.svg": way_through.draw,
    "batch-life.svg": batch_life.draw,
    "folding.svg": folding.draw,
    "receptive-fields.svg": receptive_fields.draw,
}


def main() -> int:
    """Draw all figures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
        print(f"drew docs/images/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
