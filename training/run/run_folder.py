"""The folder of a run: who may write it, which settings it belongs to, and what it holds.

config.json      the settings of the run
last.pt best.pt  checkpoints: where to go on, and what to use
metrics.jsonl    one line of figures an epoch
report/          pictures and a page that shows them, at the end
tensorboard/     the same figures for TensorBoard, where that is installed
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

# Metrics and pictures, with room to spare.
_SMALL_FILES_BYTES = 32 * 1024 * 1024
# The best, the last, and the one that is being written beside them.
_CHECKPOINTS_AT_ONCE = 3


class RunFolder:
    """Paths and small files of one run; opened by `open_run_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / BEST_FILE
        self.last = path / LAST_FILE
        self.report = path / REPORT_FOLDER
        self.tensorboard = path / TENSORBOARD_FOLDER
        self._metrics = path / METRICS_FILE

    def check_room(self, checkpoint_bytes: int) -> None:
        """Check before the first epoch that the disk has room for what a run writes.

        Raises:
            RunError: it has not.
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
        """Make metrics.jsonl hold exactly ``records``: epochs after the checkpoint resumed from go."""
        write_replacing(self._metrics, "".join(_to_line(record) for record in records))

    def append_record(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self._metrics.open("a") as stream:
            stream.write(_to_line(record))


@contextmanager
def open_run_folder(config: TrainConfig, *, is_writer: bool = True) -> Iterator[RunFolder]:
    """Make or open the folder of ``config``'s run, for this process alone while the context lasts.

    Of the processes that train together one ``is_writer``; the others get the paths and touch nothing.

    Raises:
        RunError: it cannot be written, is in use, or belongs to a run with other settings.
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
        for left in path.glob(".*.part"):  # what a killed process was writing
            left.unlink()
        _check_settings(path, config)
        yield RunFolder(path)


def write_replacing(path: Path, text: str) -> None:
    """Write ``path`` beside and rename: readers see the old content or the new one, whole."""
    sibling = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        sibling.write_text(text)
        sibling.replace(path)
    finally:
        sibling.unlink(missing_ok=True)


def _check_settings(path: Path, config: TrainConfig) -> None:
    """Compare ``config`` with the settings of the run in the folder, or write them where there is none."""
    file = path / CONFIG_FILE
    given = config.model_dump(mode="json", exclude=set(RESUMABLE_FIELDS))
    has_checkpoints = (path / LAST_FILE).exists() or (path / BEST_FILE).exists()
    if has_checkpoints and not file.exists():
        raise RunError(f"{path} holds checkpoints but no {CONFIG_FILE}; use another --run-dir")
    if not has_checkpoints:  # nothing has been trained yet, so nothing belongs to other settings
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
