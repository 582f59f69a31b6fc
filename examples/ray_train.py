"""Trains on Ray Train with several workers: `python examples/ray_train.py --workers 2 -- --arch lenet`.

What follows `--` goes to `foldserve train`. --run-dir and a data set of your own must be folders that every
node sees; relative ones are taken from here. Ray forms the process group, and foldserve uses it. A run that
was interrupted goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one of the workers."""
    from foldserve.cli import main  # noqa: PLC0415  # on the worker

    os.chdir(settings["folder"])
    if main(["train", *settings["flags"]]) != 0:
        raise RuntimeError("foldserve train failed; the worker's log above says why")


def main() -> None:
    """Start the workers and wait for them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", action="store_true", help="give each worker a GPU")
    parser.add_argument("--restarts", type=int, default=3, help="times that lost workers are started again")
    parser.add_argument("flags", nargs="*", help="flags of `foldserve train`")
    arguments = parser.parse_args()
    TorchTrainer(
        train_worker,
        train_loop_config={"flags": arguments.flags, "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpus),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=arguments.restarts)),
    ).fit()


if __name__ == "__main__":
    main()
