"""Keeps what became of each network as JSON lines, so that a run can be resumed.

A line holds one network with one kind of statistics; a later line replaces an earlier one of the same.
"""

from __future__ import annotations

import fnmatch
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Row = dict[str, Any]
Key = tuple[str, str]  # network, statistics


def key_of(row: Row) -> Key:
    """Return the network and the statistics that a row is about."""
    return row["network"], row["statistics"]


def read_results(path: Path) -> dict[Key, Row]:
    """Return the newest row of each network and statistics; nothing if there is no file.

    A last line that was cut short, by a full disk or a kill, is left out.

    Raises:
        ValueError: another line is not a row.
    """
    rows: dict[Key, Row] = {}
    if not path.exists():
        return rows
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[key_of(row)] = row
        except (json.JSONDecodeError, TypeError, KeyError):
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number} is not a row of results; remove it") from None
    return rows


def append_result(path: Path, row: Row) -> None:
    """Add a row, on a line of its own even after one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.tell()
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                _drop_last_line(path)
        file.write(json.dumps(row).encode() + b"\n")


def _drop_last_line(path: Path) -> None:
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)


def still_to_do(
    wanted: Sequence[Key],
    done: dict[Key, Row],
    *,
    again: Sequence[str] = (),
    failed: bool = False,
    other_commit: str | None = None,
) -> list[Key]:
    """Return those of ``wanted`` that have no row yet, or whose row is asked for again.

    Args:
        wanted: in the order of the run.
        done: rows that are there.
        again: names or patterns of networks, such as ``timm/nf*``.
        failed: also those that were not published and right.
        other_commit: also those whose row is of another commit than this one.
    """

    def is_asked(key: Key) -> bool:
        row = done.get(key)
        return (
            row is None
            or any(fnmatch.fnmatchcase(key[0], pattern) for pattern in again)
            or (failed and row["outcome"] != "right")
            or (other_commit is not None and row["commit"] != other_commit)
        )

    return [key for key in wanted if is_asked(key)]
