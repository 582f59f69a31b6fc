"""Writes the results as Markdown: a summary for each package, what was not published, and every network."""

from __future__ import annotations

import re
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.networks.results import Row

# The bounds that this project set: the share that is published and right, and what folding and memory must
# reach.
_LEAST_RIGHT = {"torchvision": 0.98, "timm": 0.96, "onnx": 1.0}
_LEAST_FOLDED = 0.97
_MOST_MIB = 2500
# Logits that differ less than this from image to image, relative to their size, say little of a network.
_LEAST_VARYING = 0.01
_FEW_PARAMETERS = 150_000_000
_MOST_REASON = 160


def one_line(row: Row) -> str:
    """Return what became of a network, for the progress of a run."""
    parts = [f"{row['network']} {row['statistics']}: {row['outcome']}"]
    if "folds" in row:
        parts.append(f"{row['folded']} of {row['folds']} folded")
    if "cpu_seconds" in row:
        parts.append(f"{row['cpu_seconds']:.0f} s, {row['peak_mib']:,} MiB")
    if "error" in row:
        parts.append(f"error {row['error']:.1e}, PyTorch {row['pytorch_error']:.1e}")
    if "pytorch" in row:
        parts.append(f"PyTorch's exporter: {row['pytorch']['outcome']}")
    if "reason" in row:
        parts.append(row["reason"])
    return "; ".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """Return a table with a line for each package and kind of statistics, and the bounds below it."""
    lines = [
        "| package | statistics | networks | right | refused | crashed or stopped | wrong"
        " | PyTorch's exporter right | folded | processor, s | memory, MiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_summary_line(*group, group_rows) for group, group_rows in _groups(rows).items()]
    return "\n".join([*lines, "", *bounds(rows)])


def bounds(rows: Sequence[Row]) -> list[str]:
    """Return a line for each bound: what was reached, and whether that is enough."""
    lines = []
    for (package, statistics), group in _groups(rows).items():
        share = _count(group, "right") / len(group)
        least = _LEAST_RIGHT[package]
        text = f"{package}, {statistics}: {share:.1%} published and right, at least {least:.0%}"
        lines.append(_bound(text, met=share >= least))
    wrong = _count(rows, "wrong")
    lines.append(_bound(f"{wrong} published and wrong, 0 allowed", met=wrong == 0))
    compared = [row for row in rows if "pytorch" in row]
    if compared:
        ours, theirs = _count(compared, "right"), sum(_pytorch_is_right(row) for row in compared)
        by = f"{ours} by foldserve and {theirs} by PyTorch's exporter"
        text = f"of {len(compared)} compared, right: {by}; more wanted"
        lines.append(_bound(text, met=ours > theirs))
    folded, folds = _folds(rows)
    if folds:
        text = (
            f"{folded:,} of {folds:,} batch norms folded ({folded / folds:.1%}), at least {_LEAST_FOLDED:.0%}"
        )
        lines.append(_bound(text, met=folded / folds >= _LEAST_FOLDED))
    flat = [row["network"] for row in rows if row.get("varying", 1.0) < _LEAST_VARYING]
    if flat:
        lines.append(
            _bound(f"logits that hardly depend on the image: {', '.join(flat)}; none wanted", met=False)
        )
    peaks = [row["peak_mib"] for row in rows if "folds" in row and row.get("parameters", 0) < _FEW_PARAMETERS]
    if peaks:
        text = f"memory at most {max(peaks):,} MiB below 150 million weights, at most {_MOST_MIB:,}"
        lines.append(_bound(text, met=max(peaks) <= _MOST_MIB))
    return lines


def failures(rows: Iterable[Row]) -> str:
    """Return a table of the networks that were not published and right, with the reason."""
    lines = ["| network | statistics | outcome | reason | PyTorch's exporter |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['network']} | {row['statistics']} | {row['outcome']} | {_cell(row.get('reason', ''))} "
        f"| {row.get('pytorch', {}).get('outcome', '')} |"
        for row in rows
        if row["outcome"] != "right"
    ]
    return "\n".join(lines)


def kinds(rows: Iterable[Row]) -> str:
    """Return how many networks failed for one reason, the most frequent first, names and numbers left out."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["outcome"] != "right":
            found.setdefault(_kind(row), []).append(f"{row['network']} ({row['statistics']})")
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return "\n".join(f"- {len(names)}: {kind}\n  {', '.join(names)}" for kind, names in ordered)


def all_networks(rows: Iterable[Row]) -> str:
    """Return a table with a line for each network and kind of statistics."""
    lines = [
        "| network | side | statistics | outcome | error, PyTorch's float32 = 1 | folded | processor, s"
        " | memory, MiB | PyTorch's exporter | its processor, s | its memory, MiB |",
        "|---|---:|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row["network"], row["statistics"])):
        theirs = row.get("pytorch", {})
        cells = [
            row["network"],
            row["side"],
            row["statistics"],
            row["outcome"],
            f"{row['error'] / row['pytorch_error']:.2f}"
            if row.get("pytorch_error") and "error" in row
            else "",
            f"{row['folded']}/{row['folds']}" if "folds" in row else "",
            row.get("cpu_seconds", ""),
            f"{row['peak_mib']:,}" if "peak_mib" in row else "",
            theirs.get("outcome", ""),
            theirs.get("cpu_seconds", ""),
            f"{theirs['peak_mib']:,}" if "peak_mib" in theirs else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["package"], row["statistics"]), []).append(row)
    order = list(_LEAST_RIGHT)
    return dict(sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def _summary_line(package: str, statistics: str, rows: Sequence[Row]) -> str:
    outcomes = Counter(row["outcome"] for row in rows)
    known = outcomes["right"] + outcomes["refused"] + outcomes["wrong"]
    compared = [row for row in rows if "pytorch" in row]
    folded, folds = _folds(rows)
    cells = [
        package,
        statistics,
        len(rows),
        f"{outcomes['right']} ({outcomes['right'] / len(rows):.1%})",
        outcomes["refused"],
        len(rows) - known,
        outcomes["wrong"],
        f"{sum(map(_pytorch_is_right, compared))} of {len(compared)}" if compared else "",
        f"{folded:,} of {folds:,}" if folds else "",
        _middle_and_most(row["cpu_seconds"] for row in rows if "cpu_seconds" in row),
        _middle_and_most(row["peak_mib"] for row in rows if "peak_mib" in row),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _middle_and_most(numbers: Iterable[float]) -> str:
    found = list(numbers)
    return f"{median(found):,.0f}, at most {max(found):,.0f}" if found else ""


def _folds(rows: Iterable[Row]) -> tuple[int, int]:
    published = [row for row in rows if "folds" in row]
    return sum(row["folded"] for row in published), sum(row["folds"] for row in published)


def _count(rows: Iterable[Row], outcome: str) -> int:
    return sum(row["outcome"] == outcome for row in rows)


def _pytorch_is_right(row: Row) -> bool:
    outcome: str = row["pytorch"]["outcome"]
    return outcome == "right"


def _bound(text: str, *, met: bool) -> str:
    return f"- {text}: {'met' if met else 'MISSED'}"


def _kind(row: Row) -> str:
    text = re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "N", row.get("reason", ""))
    text = re.sub(r"\S*/\S*|\S*\.\S+", "...", text)
    return f"{row['outcome']}: {text[:140]}"


def _cell(text: str) -> str:
    short = text if len(text) <= _MOST_REASON else f"{text[:_MOST_REASON]} ..."
    return short.replace("|", "\\|").replace("\n", " ")
