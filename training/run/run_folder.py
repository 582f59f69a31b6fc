"""Opens the folder of a run for one process, and checks that it belongs to the given settings.

config.json      the settings of the run
last.pt          the checkpoint that the run resumes from
best.pt          the checkpoint to export
metrics.jsonl    one line of figures per epoch
report/          pictures and a page that shows them, written at the end
tensorboard/     the same figures for TensorBoard, if it is installed
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foldserve.training.checkpoint import BEST_FILE, LAST_FILE
from foldserve.training.config import RESUMABLE_FIELDS, TrainConfig
from foldserve.training.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FOLDER = "report"
TENSORBOARD_FOLDER = "tensorboard"

# An upper bound for metrics and pictures.
_SMALL_FILES_BYTES = 32 * 1024 * 1024
# The best, the last, and the one being written.
_CHECKPOINTS_AT_ONCE = 3


class RunFolder:
    """Paths of a run's files, and its metrics file; created by `open_run_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / BEST_FILE
        self.last = path / LAST_FILE
        self.report = path / REPORT_FOLDER
        self.tensorboard = path / TENSORBOARD_FOLDER
        self._metrics = path / METRICS_FILE

    def check_room(self, checkpoint_bytes: int) -> None:
        """Check before the first epoch that the disk has room for the files of a run.

        Raises:
            RunError: the disk has too little room.
        """
        there = sum(file.stat().st_size for file in (self.best, self.last) if file.exists())
        needed = _CHECKPOINTS_AT_ONCE * checkpoint_bytes + _SMALL_FILES_BYTES - there
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunError(
                f"the disk of {self.path} has {free >> 20:,} MiB left, expected at least {needed >> 20:,} "
                "MiB for this network's checkpoints; make room or use another --run-dir"
            )

    def write_history(self, records: Sequence[dict[str, Any]]) -> None:
        """Replace metrics.jsonl by ``records``, dropping epochs after the checkpoint that is resumed from."""
        write_replacing(self._metrics, "".join(_to_line(record) for record in records))

    def append_record(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self._metrics.open("a") as stream:
            stream.write(_to_line(record))


@contextmanager
def open_run_folder(config: TrainConfig, *, is_writer: bool = True) -> Iterator[RunFolder]:
    """Create or open the folder of ``config``'s run, locked by this process while the context lasts.

    Of the processes that train together, one has ``is_writer``; the others get the paths and write nothing.

    Raises:
        RunError: the folder cannot be written, is in use, or belongs to a run with other settings.
    """
    path = config.run_dir
    if not is_writer:
        yield RunFolder(path)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"\0")
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise RunError(
            f"the run folder {path} cannot be written: {error.strerror or error}; use another --run-dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is training into {path}; use another --run-dir") from None
        for left in path.glob(".*.part"):  # left by a killed process
            left.unlink()
        _check_settings(path, config)
        yield RunFolder(path)


def write_replacing(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: readers see the old content or the new one."""
    sibling = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        sibling.write_text(text)
        sibling.replace(path)
    finally:
        sibling.unlink(missing_ok=True)


def _check_settings(path: Path, config: TrainConfig) -> None:
    """Compare ``config`` with the settings of the run in the folder, or write them if there is no run yet."""
    file = path / CONFIG_FILE
    given = config.model_dump(mode="json", exclude=set(RESUMABLE_FIELDS))
    has_checkpoints = (path / LAST_FILE).exists() or (path / BEST_FILE).exists()
    if has_checkpoints and not file.exists():
        raise RunError(f"{path} has checkpoints but no {CONFIG_FILE}; use another --run-dir")
    if not has_checkpoints:  # nothing has been trained, so the settings may change
        write_replacing(file, json.dumps(given, indent=2) + "\n")
        return
    try:
        there = json.loads(file.read_text())
        names = sorted(given.keys() | there.keys())
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{file} cannot be read: {error}; use another --run-dir") from error
    changed = [
        f"{name.replace('_', '-')} is {there.get(name)} there and {given.get(name)} here"
        for name in names
        if there.get(name) != given.get(name)
    ]
    if changed:
        raise RunError(
            f"{path} holds a run with other settings: {', '.join(changed)}; use another --run-dir, "
            "or delete the folder"
        )


def _to_line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
