"""Defines the command line of `python -m benchmarks.networks`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

PACKAGES = ("torchvision", "timm", "onnx")
STATISTICS = ("calibrated", "random", "shipped")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags: what is run, what is run again, and how."""
    parser.add_argument(
        "--results", type=Path, default=Path("build/networks.jsonl"), help="rows are appended"
    )
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=PACKAGES)
    parser.add_argument("--statistics", nargs="+", choices=STATISTICS, default=STATISTICS)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these networks: timm/res* ...")
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="NAME", help="these even if they have a row"
    )
    parser.add_argument("--failed", action="store_true", help="run those that were not right again")
    parser.add_argument("--stale", action="store_true", help="run rows of another commit again")
    parser.add_argument("--no-pytorch", dest="pytorch", action="store_false", help="skip PyTorch's exporter")
    parser.add_argument(
        "--pytorch-again", action="store_true", help="do not keep its results of earlier rows"
    )
    parser.add_argument("--only-pytorch", action="store_true", help="run it for rows that lack it")
    parser.add_argument("--jobs", type=int, default=1, help="networks at once")
    parser.add_argument("--limit-s", type=float, default=300, help="of the processor, per network")
    parser.add_argument("--limit-mib", type=int, default=8000, help="resident memory per network")
    parser.add_argument(
        "--table", action="store_true", help="only print the table of the rows that are there"
    )
