"""The accuracy tables of docs/training.md: `python -m benchmarks.training_figures TABLE`.

accuracy  every network's recipes on Fashion-MNIST, over the seeds given
ablation  what batch norm, ReLU, augmentation and dropout are each worth, by leaving them out

Each run is `foldserve train` itself, into a folder of its own under --runs: what is finished is not run
again, what was interrupted goes on. Prints a Markdown table: mean and deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.run import train
from training.run_folder import METRICS_FILE


@dataclass(frozen=True)
class Case:
    """A row: what is trained, with what that is unlike the recipe."""

    name: str
    arch: str
    recipe: str = "default"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that trains it, with seed 0."""
        words = ["foldserve train", f"--arch {self.arch}"]
        words += [f"--recipe {self.recipe}"] if self.recipe != "default" else []
        for name, value in self.settings.items():
            flag = name.replace("_", "-")
            words.append(f"--no-{flag}" if value is False else f"--{flag} {value}")
        return " ".join(words)


@dataclass(frozen=True)
class Figures:
    """What came out of one run; accuracies 0..1."""

    test_accuracy: float
    validation_accuracy: float
    train_s: float
    parameters: int


_RECIPES = (
    Case("lenet", "lenet"),
    Case("lenet, long", "lenet", "long"),
    Case("alexnet", "alexnet"),
    Case("alexnet, long", "alexnet", "long"),
    Case("resnet", "resnet"),
)
_ABLATION = (
    Case("as it is", "lenet", settings={"epochs": 5}),
    Case("without batch norm", "lenet", settings={"epochs": 5, "batch_norm": False}),
    Case("sigmoid for ReLU", "lenet", settings={"epochs": 5, "activation": "sigmoid"}),
    Case(
        "sigmoid, without batch norm",
        "lenet",
        settings={"epochs": 5, "activation": "sigmoid", "batch_norm": False},
    ),
    Case("without augmentation", "lenet", settings={"epochs": 5, "augment": False}),
    Case("with dropout 0.3", "lenet", settings={"epochs": 5, "dropout": 0.3}),
)
TABLES = {"accuracy": _RECIPES, "ablation": _ABLATION}


def main() -> None:
    """Train what is missing and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--only", nargs="*", help="names of rows; all of them by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="for a trial: instead of each row's own")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/figures"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args()
    cases = [case for case in TABLES[args.table] if args.only is None or case.name in args.only]
    if not cases:
        parser.error(f"--only: expected some of {', '.join(case.name for case in TABLES[args.table])}")
    shared = {"data_dir": args.data_dir, "device": args.device}
    if args.epochs is not None:
        shared["epochs"] = args.epochs
    rows = [(case, [run(case, seed, args.runs, shared) for seed in args.seeds]) for case in cases]
    print_table(rows)


def run(case: Case, seed: int, runs: Path, shared: dict[str, Any]) -> Figures:
    """Train ``case`` with ``seed``, unless that has been done, and return its figures."""
    settings = {"arch": case.arch, "recipe": case.recipe, **case.settings, **shared, "seed": seed}
    name = "-".join([case.arch, case.recipe, *(f"{key}={value}" for key, value in case.settings.items())])
    epochs = f"-for-{shared['epochs']}" if "epochs" in shared else ""
    config = TrainConfig.model_validate(settings | {"run_dir": runs / f"{name}{epochs}-seed-{seed}"})
    train(config)
    best = load_checkpoint(config.run_dir)
    records = [json.loads(line) for line in (config.run_dir / METRICS_FILE).read_text().splitlines()]
    return Figures(
        test_accuracy=best.metrics["test_accuracy"],
        validation_accuracy=best.metrics["validation_accuracy"],
        train_s=sum(record["train_s"] for record in records),
        parameters=sum(parameter.numel() for parameter in best.build().network.parameters()),
    )


def print_table(rows: list[tuple[Case, list[Figures]]]) -> None:
    """Print the rows in Markdown, with the machine that they were made on."""
    print(
        f"\n{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}; mean ± deviation\n"
    )
    print("| network | parameters | test accuracy | validation | training time | seeds | command |")
    print("|---|---|---|---|---|---|---|")
    for case, figures in rows:
        print(
            f"| {case.name} | {figures[0].parameters:,} "
            f"| {_spread([100 * one.test_accuracy for one in figures], '{:.2f}')} % "
            f"| {_spread([100 * one.validation_accuracy for one in figures], '{:.2f}')} % "
            f"| {_spread([one.train_s for one in figures], '{:.0f}')} s "
            f"| {len(figures)} | `{case.command}` |"
        )


def _spread(values: list[float], shape: str) -> str:
    mean = shape.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {shape.format(statistics.stdev(values))}"


if __name__ == "__main__":
    main()
