"""Labels the images of Parquet files on Dask: `python examples/dask_classify.py MODEL INPUT OUTPUT`.

As `ray_data.py`, with the same class. Each worker opens and proves the version once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from distributed import Client, LocalCluster
from parquet_classifier import opened

if TYPE_CHECKING:
    from collections.abc import Iterator


def classify(model: str, source: str, row_group: int, target: str) -> int:
    """Answer one row group of a file; return how many rows it had."""
    rows = pq.ParquetFile(source).read_row_group(row_group, ["id", "image"])
    pq.write_table(opened(model)(rows), target)
    return len(rows)


def parts(source: Path, output: Path) -> Iterator[tuple[str, int, str]]:
    """Yield file, row group and target of each task."""
    for path in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
        for number in range(pq.ParquetFile(path).num_row_groups):
            yield str(path), number, str(output / f"{path.stem}-{number:05}.parquet")


def main() -> None:
    """Answer on a cluster on this machine, or on the one whose scheduler is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scheduler", help="HOST:PORT of a Dask scheduler")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = str(arguments.model.resolve())
    cluster = arguments.scheduler or LocalCluster(n_workers=arguments.workers, threads_per_worker=1)
    with Client(cluster) as client:
        tasks = [
            client.submit(classify, model, *part, retries=3)
            for part in parts(arguments.input.resolve(), arguments.output.resolve())
        ]
        print(f"{sum(client.gather(tasks))} rows answered")


if __name__ == "__main__":
    main()
