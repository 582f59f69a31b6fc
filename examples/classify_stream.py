"""Classifies many pictures over one stream: `python examples/classify_stream.py MODEL FOLDER`.

Answers come in the order of the pictures, while later ones are still being sent. A picture that is none is
answered with its error and ends nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foldserve import Client


def main() -> None:
    """Print the most probable label of each file below the folder, or why it has none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", default="127.0.0.1:8001")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.rglob("*") if path.is_file())
    with Client(options.server) as client:
        answers = client.classify_stream(options.model, paths)
        for path, answer in zip(paths, answers, strict=True):
            if answer.error is not None:
                print(path, f"error: {answer.error}", sep="\t")
                continue
            ((best,),) = answer.result().labels  # of one image, one label
            print(path, f"{best.name} {best.probability:.1%}", sep="\t")


if __name__ == "__main__":
    main()
