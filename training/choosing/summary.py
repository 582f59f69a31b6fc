"""Reads what a run folder tells about its run, also one that is half written or broken.

Nothing is locked or written, so that a run that trains meanwhile is not disturbed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foldserve.errors import FoldserveError
from foldserve.text import escaped
from foldserve.training.checkpoint import BEST_FILE, LAST_FILE, load_checkpoint
from foldserve.training.errors import RunError
from foldserve.training.run.folder_lock import LOCK_FILE
from foldserve.training.run.run_folder import METRICS_FILE
from foldserve.training.settings_file import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

_MARKS = (CONFIG_FILE, LAST_FILE, BEST_FILE, METRICS_FILE)
_MOST_CONFIG_BYTES = 1024 * 1024
# 100,000 epochs of some 400 bytes.
_MOST_METRICS_BYTES = 40_000_000
_TOO_LARGE = 2**63  # for a figure
_FIGURES = ("epoch", "train_loss", "validation_loss", "validation_accuracy")

State = Literal["finished", "training", "trained", "interrupted", "begun", "BROKEN"]


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run; ``reason`` says what is wrong with a broken one.

    Attributes:
        settings: those of config.json.
        history: the figures of each finished epoch.
        test: the figures on the test images, once the run is finished.
        chosen_epoch: the epoch whose weights are kept, from 1.
        changed: when an epoch was last finished, or the run begun.
    """

    path: Path
    state: State
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    test: Mapping[str, Any] = field(default_factory=dict)
    chosen_epoch: int | None = None
    changed: datetime | None = None

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record of the epoch whose weights are kept, or of the best one by the figure that decides."""
        by = f"validation_{str(self.settings.get('select', 'accuracy')).replace('-', '_')}"

        def figure(record: Mapping[str, Any]) -> float:
            return float(record[by] if _is_number(record.get(by)) else record["validation_accuracy"])

        kept = [record for record in self.history if record["epoch"] == self.chosen_epoch]
        return max(kept or self.history, key=figure, default=None)

    @property
    def seconds(self) -> float:
        """Time that the epochs trained, without their evaluation."""
        return math.fsum(_number(record.get("train_s")) for record in self.history)


def is_run(folder: Path) -> bool:
    """Tell whether a folder has one of the files of a run."""
    try:
        return any((folder / name).exists() for name in _MARKS)
    except OSError:
        return False


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in ``folder``, or itself if it is one.

    Raises:
        RunError: it is no folder that can be read.
    """
    if is_run(folder):
        return [folder]
    try:
        return sorted(entry for entry in folder.iterdir() if entry.name[0] != "." and is_run(entry))
    except OSError as error:
        raise RunError(
            f"{folder} cannot be read: {error.strerror or error}; expected a folder of runs, such as runs"
        ) from error


def summarize(folder: Path) -> RunSummary:
    """Return what is known of the run in ``folder``. A fault in its files makes it a broken one."""
    if not is_run(folder):
        what = "is not a run: it has no config.json" if folder.is_dir() else "is no folder"
        return RunSummary(folder, "BROKEN", what)
    settings: Mapping[str, Any] = {}
    history: tuple[Mapping[str, Any], ...] = ()
    changed = _changed(folder)
    try:
        settings = _read_settings(folder / CONFIG_FILE)
        history = _read_history(folder / METRICS_FILE)
        test, chosen_epoch = _read_best(folder / BEST_FILE)
        if test:
            state: State = "finished"
        elif _is_locked(folder / LOCK_FILE):
            state = "training"
        elif history and len(history) >= _number(settings.get("epochs")):
            state = "trained"  # and not judged on the test images, as the trials of a search
        else:
            state = "interrupted" if history or (folder / LAST_FILE).exists() else "begun"
    except (FoldserveError, OSError, ValueError) as error:
        reason = escaped(" ".join(str(error).split()))
        return RunSummary(folder, "BROKEN", reason, settings, history, changed=changed)
    return RunSummary(folder, state, "", settings, history, test, chosen_epoch, changed)


def _read_settings(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as stream:
            there = json.loads(stream.read(_MOST_CONFIG_BYTES))
    except FileNotFoundError:
        raise RunError(f"{CONFIG_FILE} is missing") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(there, dict):
        raise RunError(f"{CONFIG_FILE} holds no settings")
    return there


def _read_history(file: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the records; a last line without its end is still being written, or was cut short."""
    if not file.exists():
        return ()
    if file.stat().st_size > _MOST_METRICS_BYTES:
        raise RunError(f"{METRICS_FILE} has more than {_MOST_METRICS_BYTES:,} bytes")
    *lines, _unfinished = file.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not all(_is_number(record.get(name)) for name in _FIGURES):
            raise RunError(f"{METRICS_FILE} line {number} has no figures of an epoch")
        records.append(record)
    return tuple(records)


def _read_best(file: Path) -> tuple[Mapping[str, Any], int | None]:
    """Return the figures on the test images, and the epoch of the weights."""
    if not file.exists():
        return {}, None
    metrics = load_checkpoint(file).metrics
    numbers = {name: value for name, value in metrics.items() if _is_number(value)}
    test = {name: value for name, value in numbers.items() if name.startswith("test_")}
    return test, numbers.get("epoch")


def _changed(folder: Path) -> datetime | None:
    for name in (METRICS_FILE, *_MARKS):
        try:
            return datetime.fromtimestamp((folder / name).stat().st_mtime, UTC)
        except (OSError, OverflowError, ValueError):
            continue
    return None


def _is_locked(lock: Path) -> bool:
    """Tell whether a process trains in the folder. Trying to lock it could stop one from starting."""
    try:
        inode = lock.stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    return any(f":{inode} " in line and " FLOCK " in line for line in locks.splitlines())


def _is_number(value: object) -> bool:
    """Tell whether a value is a number, perhaps NaN, and no whole one that is too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < _TOO_LARGE


def _number(value: Any) -> float:
    return float(value) if _is_number(value) and math.isfinite(value) else 0.0
