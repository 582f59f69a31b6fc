"""`python -m benchmarks.training_figures TABLE`: the accuracy tables of docs/benchmarks.md.

accuracy  the recipes of every network on Fashion-MNIST, over the seeds given
ablation  the effect of batch norm, ReLU, augmentation and dropout, leaving out one at a time

Each run is a `foldserve train` process with a run folder of its own below --runs. Finished runs are not
repeated; interrupted ones are resumed. Prints a Markdown table: mean and standard deviation over the seeds,
the training time, and the CPU time of the whole command (start, validation, test images and report
included), with the number of CPUs that other programs kept busy meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foldserve.demo.children import ending_with_us
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.run.run_folder import METRICS_FILE

# What a run cost, beside its metrics; only of a run that one process trained from its start to its end.
COST_FILE = "cost.json"
_PROCESSOR_TIMES = Path("/proc/stat")


@dataclass(frozen=True)
class Case:
    """A row: a network, and the flags that deviate from its recipe."""

    name: str
    arch: str
    recipe: str = "default"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        """The flags of the command that trains it, but for seed and folder."""
        flags = ["--arch", self.arch]
        flags += ["--recipe", self.recipe] if self.recipe != "default" else []
        for name, value in self.settings.items():
            flag = name.replace("_", "-")
            flags += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
        return flags


@dataclass(frozen=True)
class Cost:
    """Cost of a whole command: CPU seconds, and the number of CPUs that other programs kept busy."""

    processor_s: float
    others_busy: float


@dataclass(frozen=True)
class Figures:
    """Results of one run; accuracies 0..1; no cost if the run was interrupted."""

    test_accuracy: float
    validation_accuracy: float
    train_s: float
    parameters: int
    cost: Cost | None


_RECIPES = (
    Case("lenet", "lenet"),
    Case("lenet, long", "lenet", "long"),
    Case("alexnet", "alexnet"),
    Case("alexnet, long", "alexnet", "long"),
    Case("resnet", "resnet"),
    Case("resnet, long", "resnet", "long"),
)
_AUGMENTED = {"epochs": 5, "augment_until": 1}  # to the end
_ABLATION = (
    Case("as it is", "lenet", settings=_AUGMENTED),
    Case("without batch norm", "lenet", settings=_AUGMENTED | {"batch_norm": False}),
    Case("sigmoid for ReLU", "lenet", settings=_AUGMENTED | {"activation": "sigmoid"}),
    Case(
        "sigmoid, without batch norm",
        "lenet",
        settings=_AUGMENTED | {"activation": "sigmoid", "batch_norm": False},
    ),
    Case("without augmentation", "lenet", settings={"epochs": 5, "augment": False}),
    Case("with dropout 0.3", "lenet", settings=_AUGMENTED | {"dropout": 0.3}),
)
TABLES = {"accuracy": _RECIPES, "ablation": _ABLATION}


def main() -> None:
    """Train the missing runs and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--only", nargs="*", help="names of rows; all of them by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/figures"))
    parser.add_argument("--epochs", help="for a trial: instead of each row's own")
    parser.add_argument("--threads", help="on the CPU; by default tried out by each run")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    cases = [case for case in TABLES[args.table] if args.only is None or case.name in args.only]
    if not cases:
        parser.error(f"--only: expected some of {', '.join(case.name for case in TABLES[args.table])}")
    shared = [
        word
        for flag in ("epochs", "threads", "device", "data_dir")
        if (value := getattr(args, flag)) is not None
        for word in (f"--{flag.replace('_', '-')}", value)
    ]
    print_table([(case, [run(case, seed, args.runs, shared) for seed in args.seeds]) for case in cases])


def run(case: Case, seed: int, runs: Path, shared: list[str]) -> Figures:
    """Train ``case`` with ``seed``, unless that has been done, and return its figures."""
    words = [word.removeprefix("--") for word in (*case.flags[1:], *shared)]
    run_dir = runs / "-".join([*words, "seed", str(seed)]).replace("/", "-")
    command = [sys.executable, "-m", "foldserve", "train", *case.flags, *shared, "--seed", str(seed)]
    is_new = not run_dir.exists()
    cost = _run_measured([*command, "--run-dir", str(run_dir)])
    if is_new:
        (run_dir / COST_FILE).write_text(json.dumps(vars(cost)))
    return read_figures(run_dir)


def read_figures(run_dir: Path) -> Figures:
    """Return the figures of the finished run in ``run_dir``."""
    best = load_checkpoint(run_dir)
    records = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]
    cost_file = run_dir / COST_FILE
    return Figures(
        test_accuracy=best.metrics["test_accuracy"],
        validation_accuracy=best.metrics["validation_accuracy"],
        train_s=sum(record["train_s"] for record in records),
        parameters=sum(parameter.numel() for parameter in best.build().network.parameters()),
        cost=Cost(**json.loads(cost_file.read_text())) if cost_file.exists() else None,
    )


def _run_measured(command: list[str]) -> Cost:
    """Run ``command`` to its end and return its cost.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started_s, busy_before_s, own_before_s = time.monotonic(), _busy_s(), _children_s()
    subprocess.run(ending_with_us(command), check=True)
    taken_s, own_s = time.monotonic() - started_s, _children_s() - own_before_s
    return Cost(processor_s=own_s, others_busy=max(0.0, _busy_s() - busy_before_s - own_s) / taken_s)


def _children_s() -> float:
    """Return the CPU seconds of all ended children of this process."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _busy_s() -> float:
    """Return the busy seconds of all CPUs together since the machine started."""
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts = (
        int(ticks) for ticks in _PROCESSOR_TIMES.read_text().split(maxsplit=8)[1:8]
    )
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def print_table(rows: list[tuple[Case, list[Figures]]]) -> None:
    """Print the rows in Markdown, with the machine that they were made on."""
    print(
        f"\n{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}; mean ± deviation\n"
    )
    print(
        "| network | parameters | test accuracy | validation | training time | processor time | others busy "
        "| seeds | command |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case, figures in rows:
        costs = [one.cost for one in figures if one.cost is not None]
        is_measured = len(costs) == len(figures)
        processor_s = _spread([cost.processor_s for cost in costs], "{:.0f}") + " s" if is_measured else ""
        others_busy = f"{statistics.mean(cost.others_busy for cost in costs):.1f}" if is_measured else ""
        print(
            f"| {case.name} | {figures[0].parameters:,} "
            f"| {_spread([100 * one.test_accuracy for one in figures], '{:.2f}')} % "
            f"| {_spread([100 * one.validation_accuracy for one in figures], '{:.2f}')} % "
            f"| {_spread([one.train_s for one in figures], '{:.0f}')} s "
            f"| {processor_s} | {others_busy} "
            f"| {len(figures)} | `foldserve train {' '.join(case.flags)}` |"
        )


def _spread(values: list[float], shape: str) -> str:
    mean = shape.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {shape.format(statistics.stdev(values))}"


if __name__ == "__main__":
    main()
