"""Classifies pictures without a server: `python examples/classify_locally.py FOLDER PICTURE ...`.

FOLDER is a model's, such as models/lenet. The version is proven first, as a server does, and its answers are
those of a server. Needs `pip install 'foldserve[serve]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foldserve import LocalModel


def main() -> None:
    """Print the most probable label of each picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", nargs="+", type=Path)
    options = parser.parse_args()
    with LocalModel(options.folder) as model:
        predictions = model.predict(options.pictures)
        for picture, row in zip(options.pictures, predictions.probabilities, strict=True):
            best = row.argmax()
            print(picture, f"{model.labels[best]} {row[best]:.1%}", sep="\t")


if __name__ == "__main__":
    main()
