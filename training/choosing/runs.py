"""Carries out `foldserve runs list` and `foldserve runs compare`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldserve.text import escape_controls, legible
from foldserve.training.choosing.curves import draw_overlaid
from foldserve.training.choosing.summary import RunSummary, find_runs, summarize
from foldserve.training.errors import RunError
from foldserve.training.run.pictures import check_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from foldserve.training.choosing.config import CompareRunsConfig, ListRunsConfig

_HEADINGS = (
    "RUN",
    "NETWORK",
    "DATA SET",
    "EPOCHS",
    "VALIDATION",
    "TEST",
    "MACRO-F1",
    "DATE",
    "SECONDS",
    "STATE",
)
_SHOWN_CHARACTERS = 40
# Settings that say where a run lies, not what it computes.
_PLACES = frozenset({"data_dir", "device", "threads"})


_NEVER = datetime.min.replace(tzinfo=UTC)
_ORDERS: dict[str, Callable[[RunSummary], Any]] = {
    "date": lambda run: (run.changed or _NEVER, run.path),
    "accuracy": lambda run: (run.best["validation_accuracy"] if run.best else -1, run.path),
    "name": lambda run: run.path,
}


def list_runs(config: ListRunsConfig) -> int:
    """Print one line per run; return 0.

    Raises:
        RunError: the folder cannot be read, or holds no runs.
    """
    found = find_runs(config.folder)
    if not found:
        raise RunError(f"{config.folder} holds no runs; expected a folder of `foldserve train`'s run folders")
    print_table(sorted(map(summarize, found), key=_ORDERS[config.sort]))
    return 0


@contextmanager
def _explaining(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}; give another --out") from error


def compare_runs(config: CompareRunsConfig) -> int:
    """Print the runs and the settings that differ, and draw their curves; return 1 if one is broken.

    Raises:
        RunError: none of the runs has an epoch to draw, or the picture cannot be written.
    """
    with _explaining(config.out):
        check_writable(config.out)
    runs = [summarize(path) for path in dict.fromkeys(config.runs)]
    print_table(runs)
    _print_settings(runs)
    drawn = [run for run in runs if run.history]
    if not drawn:
        raise RunError("none of these runs has finished an epoch, so there are no curves to draw")
    with _explaining(config.out):
        draw_overlaid(config.out, drawn)
    print(f"curves: {config.out}")
    broken = [str(run.path) for run in runs if run.state == "BROKEN"]
    if broken:
        print(f"foldserve runs compare: broken: {', '.join(map(legible, broken))}", file=sys.stderr)
    return 1 if broken else 0


def print_table(runs: Sequence[RunSummary]) -> None:
    """Print one line per run below the headings."""
    table = [list(_HEADINGS), *(_row(run) for run in runs)]
    table = [[escape_controls(cell) for cell in row] for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS) - 1)]
    for row in table:
        padded = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=True)]
        print("  ".join([*padded, row[-1]]).rstrip())


def _row(run: RunSummary) -> list[str]:
    best = run.best
    f1 = run.test.get("test_macro_f1", best.get("validation_macro_f1") if best else None)
    return [
        str(run.path),
        _text(run.settings.get("arch")),
        _text(_names(run.settings.get("dataset"))),
        f"{len(run.history)} of {_text(run.settings.get('epochs'))}" if run.settings else "",
        _share(best and best["validation_accuracy"]),
        _share(run.test.get("test_accuracy")),
        _share(f1),
        f"{run.changed:%Y-%m-%d %H:%M}" if run.changed else "",
        f"{run.seconds:,.0f}" if run.history else "",
        f"{run.state}: {run.reason}" if run.reason else run.state,
    ]


def _print_settings(runs: Sequence[RunSummary]) -> None:
    """Print the settings in which the runs differ, one line each, in the order of the table."""
    told = [run for run in runs if run.settings]
    names = dict.fromkeys(name for run in told for name in run.settings if name not in _PLACES)
    for name in names:
        values = ["-" if (value := run.settings.get(name)) is None else str(value) for run in told]
        if len(set(values)) > 1:
            print(legible(f"{name.replace('_', '-')}: {', '.join(values)}"))


def _names(dataset: Any) -> Any:
    """Return the name of a data set, without the folders that it or its tables lie in."""
    return ",".join(Path(part).name for part in dataset.split(",")) if isinstance(dataset, str) else dataset


def _text(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _share(value: Any) -> str:
    return f"{value:.2%}" if isinstance(value, int | float) else ""
