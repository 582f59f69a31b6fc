"""Writes the rows of `foldserve predict`, so that a run that is stopped can go on.

Rows are appended as JSON lines to OUT.part, whose facts (model, flags) are in OUT.part.json. At the end the
part is converted to the format asked for and renamed to OUT, which is therefore complete or not there.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Self

from foldserve.local.errors import OutputError
from foldserve.ordered import in_chunks
from foldserve.replacing import replacing, write_replacing
from foldserve.terminal_output import to_json_line
from foldserve.text import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from foldserve.tables.items import Item

    Row = Mapping[str, Any]

_ROWS_PER_GROUP = 10_000


class RowFile:
    """The output of one run. Use it as a context manager: what was written stays if the block fails.

    Attributes:
        done_count: rows that an earlier run has written.
    """

    def __init__(self, out: Path, *, resume: bool, overwrite: bool) -> None:
        """Open the part for writing, so that nobody else writes it; nothing in it is changed yet.

        Args:
            out: the file to write; its suffix chooses the format.
            resume: go on with an earlier part.
            overwrite: drop an earlier part and output.

        Raises:
            OutputError: the output or a part of it exists and neither flag is given, another process writes
                it, or it cannot be written.
        """
        self._out, self._resume = out, resume
        self._part = out.with_name(f"{out.name}.part")
        self._facts_file = out.with_name(f"{out.name}.part.json")
        self._columns = 1
        self.done_count = 0
        try:
            self._refuse_existing(overwrite=overwrite)
            out.parent.mkdir(parents=True, exist_ok=True)
            self._stream: IO[bytes] = self._part.open("a+b")
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise OutputError(f"{self._part} is being written by another process") from None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the part; remove it if nothing was begun."""
        if not self._facts_file.exists():
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk was reported when the rows were written
            self._stream.close()

    def begin(self, facts: Mapping[str, Any], columns: int) -> None:
        """Empty the part, or check that it may be continued.

        Args:
            facts: what the rows depend on; a run may only be continued with the same.
            columns: number of labels per row.

        Raises:
            OutputError: the part is of another run, or cannot be written.
        """
        self._columns = columns
        if self._resume and self._facts_file.exists():
            self._check_facts(facts)
            return
        try:
            self._stream.truncate(0)
            write_replacing(self._facts_file, json.dumps(facts) + "\n")
        except OSError as error:
            raise OutputError(f"{self._out} cannot be written: {error.strerror or error}") from error

    def skip_done(self, items: Iterator[Item]) -> Iterator[Item]:
        """Return the items that have no row yet; checks that those with one are the same as then.

        Raises:
            OutputError: the source has changed.
        """
        self._stream.seek(0)
        end = 0
        for line in self._stream:
            if not line.endswith(b"\n"):  # cut off when the run was killed
                break
            item = next(items, None)
            name = _name_in(line)
            if item is None or name != shown_name(item):
                now = (
                    "the source ends before it" if item is None else f"it is {escaped(shown_name(item))} now"
                )
                raise OutputError(
                    f"{self._part} cannot be continued: its row {self.done_count + 1} is of "
                    f"{escaped(str(name))}, and {now}; begin anew with --overwrite"
                )
            end += len(line)
            self.done_count += 1
        self._stream.truncate(end)
        self._stream.seek(0, os.SEEK_END)
        return items

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; they are in the system's hands when it returns.

        Raises:
            OutputError: the disk is full, or the file cannot be written.
        """
        try:
            self._stream.write("".join(to_json_line(row) + "\n" for row in rows).encode())
            self._stream.flush()
        except OSError as error:
            raise OutputError(
                f"{self._part} cannot be written: {error.strerror or error}; the rows so far are kept: make "
                "room and go on with --resume"
            ) from error

    def finish(self) -> None:
        """Turn the part into the output.

        Raises:
            OutputError: it cannot be written; the part is kept.
        """
        try:
            os.fsync(self._stream.fileno())
            if self._out.suffix.lower() == ".jsonl":
                self._part.replace(self._out)
            else:
                with replacing(self._out) as written:
                    _CONVERTERS[self._out.suffix.lower()](self._part, written, self._columns)
                self._part.unlink()
            self._facts_file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self._out} cannot be written: {error.strerror or error}; the rows are in {self._part}: "
                "make room and go on with --resume"
            ) from error

    def _refuse_existing(self, *, overwrite: bool) -> None:
        if overwrite:
            return
        if self._out.exists():
            what = "is complete already" if self._resume else "exists already"
            raise OutputError(f"{self._out} {what}; replace it with --overwrite, or give another --out")
        if self._facts_file.exists() and not self._resume:
            raise OutputError(
                f"{self._part} is left of a run that was stopped; go on with --resume, or begin anew with "
                "--overwrite"
            )

    def _check_facts(self, facts: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self._facts_file.read_bytes())
        except (OSError, ValueError):
            before = None
        if before != facts:
            keys = [key for key in facts if not isinstance(before, dict) or before.get(key) != facts[key]]
            raise OutputError(
                f"{self._part} was begun with another {', '.join(keys) or 'foldserve'}; give the same as "
                "then, or begin anew with --overwrite"
            )


def shown_name(item: Item) -> str:
    """Return an item's name as it stands in its row: bytes that are not UTF-8 are escaped."""
    try:
        item.name.encode()
    except UnicodeEncodeError:
        return str(json.loads(to_json_line({"path": item.name}))["path"])
    return item.name


def check_format(out: Path) -> None:
    """Import what writing ``out`` needs, before hours of work.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    if out.suffix.lower() == ".parquet":
        import pyarrow  # noqa: F401, PLC0415  # optional


def _name_in(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["path"])
    except (ValueError, KeyError, TypeError):
        return None


def _rows_in(part: Path) -> Iterator[dict[str, Any]]:
    with part.open("rb") as stream:
        for line in stream:
            yield json.loads(line)


def _to_csv(part: Path, out: Path, columns: int) -> None:
    with out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        more = [[f"label_{place}", f"probability_{place}"] for place in range(2, columns + 1)]
        writer.writerow(["path", "label", "probability", *chain(*more), "error"])
        for row in _rows_in(part):
            ranked = row.get("labels", [])[1:]
            others = [(each["label"], each["probability"]) for each in ranked]
            others += [("", "")] * (columns - 1 - len(others))
            first = [row["path"], row.get("label", ""), row.get("probability", "")]
            writer.writerow([*first, *chain(*others), row.get("error", "")])
        stream.flush()
        os.fsync(stream.fileno())


def _to_parquet(part: Path, out: Path, columns: int) -> None:
    import pyarrow as pa  # noqa: PLC0415  # optional
    import pyarrow.parquet as pq  # noqa: PLC0415

    fields = [("path", pa.string()), ("label", pa.string()), ("probability", pa.float32())]
    if columns > 1:
        ranked = pa.struct([("label", pa.string()), ("probability", pa.float32())])
        fields.append(("labels", pa.list_(ranked)))
    schema = pa.schema([*fields, ("error", pa.string())])
    with pq.ParquetWriter(out, schema) as writer:
        for rows in in_chunks(_rows_in(part), _ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist(rows, schema))


_CONVERTERS: dict[str, Callable[[Path, Path, int], None]] = {".csv": _to_csv, ".parquet": _to_parquet}
