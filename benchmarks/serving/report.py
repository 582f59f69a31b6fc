"""Builds the tables: ratios with their limits, foldserve's own share, and the measurements behind them."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.serving.rows import ROWS, SHARES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.serving.config import Group
    from benchmarks.serving.load import Measurement
    from benchmarks.serving.rounds import GroupResult
    from benchmarks.serving.rows import Row


def ratios_table(results: Mapping[Group, GroupResult]) -> Table:
    """Return the rows of the measured groups: the rounds' ratios against their bounds, and the verdict."""
    table = Table("what", "ratio", "must", "goal", "", title="Ratios, each taken within a round")
    for row in ROWS:
        if row.group not in results:
            continue
        ratios = _round_ratios(row, results[row.group])
        sign = "<=" if row.smaller_is_better else ">="
        bounds = (f"{sign} {row.must:g}", f"{sign} {row.goal:g}")
        if ratios:
            table.add_row(row.title, _with_spread(ratios), *bounds, _verdict(row, median(ratios)))
        else:
            table.add_row(row.title, "-", *bounds, f"[yellow]skipped: {_reason(row, results[row.group])}")
    return table


def shares_table(results: Mapping[Group, GroupResult]) -> Table:
    """Return where a request's CPU microseconds go: the model, the transport's library, and foldserve."""
    columns = (
        "what",
        "server CPU us",
        "batch",
        "ONNX Runtime us",
        "transport's echo us",
        "own share us",
        "%",
    )
    table = Table(*columns, title="CPU time of a request; the own share is what the other two leave of it")
    for share in SHARES:
        if share.group not in results:
            continue
        measured = results[share.group].measurements
        rounds = list(zip(measured.get(share.served, []), measured.get(share.echo, []), strict=False))
        if not rounds:
            table.add_row(share.title, "[yellow]skipped: a server is missing")
            continue
        own_us = [own_share_us(served, echo) for served, echo in rounds]
        table.add_row(
            share.title,
            _with_spread([served.server_us for served, _ in rounds]),
            _short(median(served.batch or 0.0 for served, _ in rounds)),
            _with_spread([served.model_us or 0.0 for served, _ in rounds]),
            _with_spread([echo.server_us for _, echo in rounds]),
            _with_spread(own_us),
            f"{median(own / served.server_us for own, (served, _) in zip(own_us, rounds, strict=True)):.0%}",
        )
    return table


def own_share_us(served: Measurement, echo: Measurement) -> float:
    """Return the CPU microseconds of a request that neither the model nor the transport's library took."""
    assert served.model_us is not None
    return served.server_us - served.model_us - echo.server_us


def measurements_table(results: Mapping[Group, GroupResult]) -> Table:
    """Return the medians of every trial over the rounds; for limited quantities also minimum and maximum."""
    columns = ("group", "trial", "requests/s", "images/s", "server CPU us", "p50 us", "p99 us")
    table = Table(*columns, title="Measured; server CPU is processor time a request")
    for group, result in results.items():
        for trial, runs in result.measurements.items():
            table.add_row(
                group,
                str(trial),
                _with_spread([run.requests_per_s for run in runs]),
                _short(median(run.images_per_s for run in runs)),
                _with_spread([run.server_us for run in runs]),
                _short(median(run.p50_us for run in runs)),
                _short(median(run.p99_us for run in runs)),
            )
    return table


def to_json(results: Mapping[Group, GroupResult]) -> str:
    """Return every single measurement."""
    content = {
        group: {str(trial): [asdict(run) for run in runs] for trial, runs in result.measurements.items()}
        for group, result in results.items()
    }
    return json.dumps(content, indent=2) + "\n"


def _round_ratios(row: Row, result: GroupResult) -> list[float]:
    """Return the ratio of the row in each round; empty if one of its trials was not measured."""
    tops = result.measurements.get(row.top, [])
    bottoms = result.measurements.get(row.bottom, [])
    return [
        getattr(top, row.metric) / getattr(bottom, row.metric)
        for top, bottom in zip(tops, bottoms, strict=False)
    ]


def _with_spread(values: Sequence[float]) -> str:
    """Return "median [least most]"."""
    return f"{_short(median(values))} [dim]\\[{_short(min(values))} {_short(max(values))}][/]"


def _short(value: float) -> str:
    """Return three figures of a small number, all whole ones of a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(row: Row, ratio: float) -> str:
    if row.meets(ratio, row.goal):
        return "[green]goal"
    return "[green]met" if row.meets(ratio, row.must) else "[red]missed"


def _reason(row: Row, result: GroupResult) -> str:
    return next(
        result.missing[trial.contestant]
        for trial in (row.top, row.bottom)
        if trial.contestant is not None and trial.contestant in result.missing
    )
