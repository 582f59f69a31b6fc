"""Classifies image files with the blocking client: `python examples/classify_pictures.py MODEL PICTURE ...`.

The server decodes and scales the pictures as training did, so any size and format will do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foldserve import Client


def main() -> None:
    """Print the two most probable labels of each picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--server", default="127.0.0.1:8001")
    options = parser.parse_args()
    with Client(options.server) as client:
        answer = client.classify(options.model, options.pictures, top_k=2)
    for picture, labels in zip(options.pictures, answer.labels, strict=True):
        print(picture, *(f"{label.name} {label.probability:.1%}" for label in labels), sep="\t")


if __name__ == "__main__":
    main()
