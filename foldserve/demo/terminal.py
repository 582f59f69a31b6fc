"""Prints the steps of the demo, its proof and the paths of the files it wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from foldserve.demo.proof import MAX_LOGIT_DIFFERENCE
from foldserve.terminal import own_command
from foldserve.training.run.report import CONFUSION_FILE, CURVES_FILE, PAGE_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from foldserve.demo.proof import Comparison


def print_step(console: Console, number: int, title: str) -> None:
    """Print the heading of a step."""
    console.print()
    console.rule(f"[bold]{number}. {title}", align="left")


def print_proof(console: Console, rows: Sequence[Comparison], provider: str) -> None:
    """Print one row per way of answering, and the verdict; ``provider`` is ONNX Runtime's."""
    reference = rows[0]
    # Narrow enough for a terminal of 80 columns.
    table = Table(title=f"{reference.count:,} test images, on {provider}", title_justify="left")
    table.add_column("answered by", no_wrap=True)
    for heading in ("accuracy", "identical\npredictions", "largest logit\ndifference"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        is_reference = row is reference
        table.add_row(
            row.name,
            f"{row.accuracy:.2%}",
            "reference" if is_reference else f"{row.identical:,}",
            "reference" if is_reference else f"{row.max_difference:.2e}",
            "" if is_reference else "[green]ok[/]" if row.passed else "[red]FAILS[/]",
        )
    console.print()
    console.print(table)
    if all(row.passed for row in rows):
        verdict = "[bold green]Proven:[/] the served network is the trained one"
    else:
        verdict = "[bold red]Not proven:[/] the served network differs from the trained one"
    console.print(
        f"{verdict}.\n"
        f"Logits may differ by {MAX_LOGIT_DIFFERENCE:.0e}, and predictions if the two best logits of the\n"
        f"reference are closer than twice that (here in {reference.undecided} images).",
        soft_wrap=True,
    )


def print_where(console: Console, run_dir: Path, version: Path, log: Path) -> None:
    """Print the paths of the written files, and the next command to run."""
    places = {
        "model": version,
        "checkpoint": run_dir / "best.pt",
        "training curves": run_dir / "report" / CURVES_FILE,
        "confusion matrix": run_dir / "report" / CONFUSION_FILE,
        "report": run_dir / "report" / PAGE_FILE,
        "server's log": log,
    }
    console.print()
    for name, path in places.items():
        assert path.exists(), path
        console.print(f"{name:<17} {path}", soft_wrap=True)
    console.print(
        f"\nServe it yourself: {own_command()} serve --repository {version.parent.parent}", soft_wrap=True
    )
