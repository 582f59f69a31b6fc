"""Reports a search: a table of its trials, a picture, and the command that trains with the best settings."""

from __future__ import annotations

import csv
import io
import math
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.trial import TrialState

from foldserve.replacing import write_replacing
from foldserve.text import escape_controls
from foldserve.training.choosing.curves import save_replacing
from foldserve.training.choosing.study import REASON, ended_trials, folder_number, run_folder
from foldserve.training.run.run_folder import another_run_dir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from foldserve.terminal import Terminal
    from foldserve.training.choosing.config import TuneConfig
    from foldserve.training.choosing.ranges import Range

TABLE_FILE = "trials.csv"
PICTURE_FILE = "study.png"

_SHOWN_TRIALS = 10
_COLUMNS = 4
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_COMPLETE, _PRUNED, _BEST = "#4477aa", "#999999", "#cc6677"


def report_study(study: Study, config: TuneConfig, folder: Path, terminal: Terminal) -> int:
    """Print the best trials and the flags of the first, and write table and picture.

    Returns:
        0, or 1 if no trial came to a figure.
    """
    trials = ended_trials(study)
    best_first = sorted(trials, key=lambda trial: (-_figure(trial), trial.number))
    write_replacing(folder / TABLE_FILE, _csv(trials, config.ranges))
    for line in _table(best_first[:_SHOWN_TRIALS], config):
        terminal.say(escape_controls(line))
    complete = [trial for trial in best_first if trial.state == TrialState.COMPLETE]
    if not complete:
        terminal.say(f"no trial has come to its end; see {folder / TABLE_FILE} for the reasons")
        return 1
    draw_study(folder / PICTURE_FILE, trials, config)
    best = complete[0]
    terminal.say(
        f"best: trial {best.number} of {len(trials)}, validation {config.select} {_figure(best):.2%}, in "
        f"{run_folder(folder, best)}; all trials: {folder / TABLE_FILE}, {folder / PICTURE_FILE}"
    )
    terminal.say("train with these settings, and judge them on the test images, with:")
    terminal.say(command_of(config, best))
    return 0


def command_of(config: TuneConfig, trial: FrozenTrial) -> str:
    """Return the `foldserve train` command that repeats a trial."""
    words = ["foldserve", "train"]
    for name, value in {**config.fixed, **_values(trial, config.ranges)}.items():
        flag = name.replace("_", "-")
        text = str(value).lower()
        if text in ("true", "false"):
            words.append(f"--{'' if text == 'true' else 'no-'}{flag}")
        else:
            words += [f"--{flag}", ",".join(value) if isinstance(value, list) else str(value)]
    place = config.folder.with_name(f"{config.folder.name}-best")
    words += ["--run-dir", str(another_run_dir(place) if place.exists() else place)]
    return shlex.join(words)


def _values(trial: FrozenTrial, ranges: Sequence[Range]) -> dict[str, Any]:
    """Return the settings that the trial trained with, which have fewer digits than what was drawn."""
    return {
        each.name: each.rounded(trial.params[each.name]) if each.kind == "float" else trial.params[each.name]
        for each in ranges
        if each.name in trial.params
    }


def _figure(trial: FrozenTrial) -> float:
    """Return the best figure that a trial reached; -inf if it has none."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return float(trial.value)
    return float(max(trial.intermediate_values.values(), default=-math.inf))


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


def _table(trials: Sequence[FrozenTrial], config: TuneConfig) -> list[str]:
    headings = ["TRIAL", "STATE", config.select.upper(), "EPOCHS", "SECONDS"]
    headings += [each.name.replace("_", "-").upper() for each in config.ranges]
    is_moved = any(folder_number(trial) != trial.number for trial in trials)  # after an interruption
    if is_moved:
        headings.insert(1, "FOLDER")
    rows = [headings]
    for trial in trials:
        values, figure = _values(trial, config.ranges), _figure(trial)
        rows.append(
            [
                str(trial.number),
                *([str(run_folder(config.folder, trial).relative_to(config.folder))] if is_moved else []),
                _STATES[trial.state],
                f"{figure:.2%}" if math.isfinite(figure) else "",
                str(trial.last_step or 0),
                f"{_seconds(trial):,.0f}",
                *(_cell(values.get(each.name, "")) for each in config.ranges),
            ]
        )
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(headings))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _csv(trials: Sequence[FrozenTrial], ranges: Sequence[Range]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [each.name for each in ranges]
    writer.writerow(["trial", "folder", "state", "figure", "epochs", "seconds", *names, "reason"])
    for trial in trials:
        values, figure = _values(trial, ranges), _figure(trial)
        writer.writerow(
            [
                trial.number,
                folder_number(trial),
                _STATES[trial.state],
                figure if math.isfinite(figure) else "",
                trial.last_step or 0,
                f"{_seconds(trial):.1f}",
                *(values.get(name, "") for name in names),
                trial.user_attrs.get(REASON, ""),
            ]
        )
    return text.getvalue()


def draw_study(path: Path, trials: Sequence[FrozenTrial], config: TuneConfig) -> None:
    """Draw the figure of each trial by number and by each setting into the PNG ``path``.

    Pruned trials that were below all others lie on the lower edge.

    Raises:
        OSError: the picture cannot be written.
    """
    panels = 1 + len(config.ranges)
    rows, columns = -(-panels // _COLUMNS), min(panels, _COLUMNS)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows + 0.4), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    points = _points(trials)
    best = max((point for point in points if point.is_complete), key=lambda point: point.figure)
    _draw_progress(every[0], points)
    for axes, each in zip(every[1:], config.ranges, strict=False):
        _draw_setting(axes, points, best, each)
    lowest = min(point.figure for point in points if point.is_complete)
    margin = max(0.5, 0.15 * (best.figure - lowest))
    for axes in every[:panels]:
        axes.set_ylim(lowest - 1.15 * margin, best.figure + margin)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in every[panels:]:
        axes.set_axis_off()
    figure.suptitle(f"validation {config.select} (%); grey: pruned, ringed: the best")
    save_replacing(figure, path)


@dataclass(frozen=True)
class _Point:
    """A trial in a picture; ``figure`` in percent."""

    number: int
    figure: float
    is_complete: bool
    params: dict[str, Any]


def _points(trials: Sequence[FrozenTrial]) -> list[_Point]:
    """Return the trials that have a figure; no lower than the picture reaches."""
    points = [
        _Point(trial.number, 100 * _figure(trial), trial.state == TrialState.COMPLETE, trial.params)
        for trial in trials
        if trial.state != TrialState.FAIL and math.isfinite(_figure(trial))
    ]
    figures = [point.figure for point in points if point.is_complete]
    edge = min(figures) - max(0.5, 0.15 * (max(figures) - min(figures)))
    return [replace(point, figure=max(point.figure, edge)) for point in points]


def _draw_progress(axes: Axes, points: Sequence[_Point]) -> None:
    so_far, best = [], math.nan
    for point in points:
        if point.is_complete:
            best = point.figure if math.isnan(best) else max(best, point.figure)
        so_far.append(best)
    axes.step([point.number for point in points], so_far, where="post", color=_BEST, label="best so far")
    _draw_points(axes, [(point.number, point) for point in points])
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower right")


def _draw_setting(axes: Axes, points: Sequence[_Point], best: _Point, each: Range) -> None:
    place = {choice: number for number, choice in enumerate(each.choices)}

    def at(point: _Point) -> float:
        value = point.params[each.name]
        return place[value] if each.kind == "choice" else float(value)

    _draw_points(axes, [(at(point), point) for point in points if each.name in point.params])
    axes.plot(at(best), best.figure, "o", color=_BEST, markersize=9, fillstyle="none")
    if each.choices:
        axes.set_xticks(range(len(each.choices)), [choice[:12] for choice in each.choices], rotation=30)
    elif each.log:
        axes.set_xscale("log")
        ticks = [each.low, math.sqrt(each.low * each.high), each.high]
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif each.kind == "int":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(each.name.replace("_", "-"))


def _draw_points(axes: Axes, points: Sequence[tuple[float, _Point]]) -> None:
    for is_complete, colour in ((False, _PRUNED), (True, _COMPLETE)):
        some = [(at, point.figure) for at, point in points if point.is_complete == is_complete]
        axes.plot([at for at, _ in some], [figure for _, figure in some], ".", color=colour)
