"""Labels the images of Parquet files on Ray Data: `python examples/ray_data.py MODEL INPUT OUTPUT`.

MODEL is a version's folder, as REPOSITORY/NAME/VERSION; `parquet_classifier.py` says what INPUT and OUTPUT
hold. Each actor proves the version before it answers. One that is lost is started again, and its rows are
answered once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray
from parquet_classifier import Classifier


def main() -> None:
    """Read, answer and write; with the folders absolute, as the workers have another working directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4096, help="rows that an actor gets at once")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per actor")
    arguments = parser.parse_args()
    table = ray.data.read_parquet(str(arguments.input.resolve()), columns=["id", "image"])
    answers = table.map_batches(
        Classifier,
        fn_constructor_args=(str(arguments.model.resolve()),),
        batch_size=arguments.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        num_gpus=arguments.gpus,
    )
    answers.write_parquet(str(arguments.output.resolve()))


if __name__ == "__main__":
    main()
