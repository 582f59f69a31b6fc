"""Opens the folder of a run for one process, and checks that it belongs to the given settings.

config.json      the settings of the run
last.pt          the checkpoint that the run resumes from
best.pt          the checkpoint to export
metrics.jsonl    one line of figures per epoch
report/          pictures and a page that shows them, written at the end
tensorboard/     the same figures for TensorBoard, if it is installed
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foldserve.replacing import write_replacing
from foldserve.text import join_first
from foldserve.training.checkpoint import BEST_FILE, LAST_FILE
from foldserve.training.config import TrainConfig
from foldserve.training.datasets.registry import DATASETS
from foldserve.training.engine.class_weights import BALANCED
from foldserve.training.errors import RunError
from foldserve.training.recipes import INITIAL_FIELDS, NAMED_DATASETS, RULE_FIELDS
from foldserve.training.run.folder_lock import locked_folder
from foldserve.training.settings_file import CONFIG_FILE, ENDING_FIELDS, RESUMABLE_FIELDS, as_earlier

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

METRICS_FILE = "metrics.jsonl"
REPORT_FOLDER = "report"
TENSORBOARD_FOLDER = "tensorboard"

# An upper bound for metrics and pictures.
_SMALL_FILES_BYTES = 32 * 1024 * 1024
# The best, the last, and the one being written.
_CHECKPOINTS_AT_ONCE = 3


# Settings that a run decides by itself unless they are given; once it has, its config.json says how.
_DECIDED = frozenset({"precision", "flip", "border", "image_size", "validation_count"})


class RunFolder:
    """Paths of a run's files, its metrics and its settings; created by `open_run_folder`.

    ``config`` are the settings asked for, completed by those that the run decided earlier. ``changed`` are
    the names of those that let it end later, or earlier, than it was to.
    """

    def __init__(
        self, path: Path, config: TrainConfig | None = None, *, changed: frozenset[str] = frozenset()
    ) -> None:
        self.path = path
        self.config = config
        self.changed = changed
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

    def write_settings(self, config: TrainConfig) -> None:
        """Write config.json, which holds what the run uses."""
        settings = with_absolute_paths(config.model_dump(mode="json", exclude=set(RESUMABLE_FIELDS)))
        write_replacing(self.path / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")

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
        yield RunFolder(path, config)
        return
    with locked_folder(path, named="run folder", busy="is training into"):
        for left in path.glob(".*.part"):  # left by a killed process
            left.unlink()
        asked, changed = _check_settings(path, config)
        yield RunFolder(path, asked, changed=changed)


def with_absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``settings``, JSON values by name, with paths that name the same files from any folder."""
    names = {"dataset": DATASETS, "init": (), "class_weights": (BALANCED,)}
    return {
        name: _absolute(value) if name in names and value is not None and value not in names[name] else value
        for name, value in settings.items()
    }


def _absolute(path: str) -> str:
    """Return the absolute path of a file or folder, or those of several tables with commas between."""
    parts = [path] if os.path.exists(path) else path.split(",")  # noqa: PTH110  # Path raises for long names
    return ",".join(os.path.realpath(part) for part in parts)


def another_run_dir(path: Path) -> Path:
    """Return a run folder beside ``path`` that does not exist yet."""
    return next(
        place
        for number in itertools.count(2)
        if not (place := path.with_name(f"{path.name}-{number}")).exists()
    )


def _check_settings(path: Path, config: TrainConfig) -> tuple[TrainConfig, frozenset[str]]:
    """Compare ``config`` with the settings of the run in the folder, if there is one.

    Returns:
        ``config`` with what that run decided by itself, and the settings by which it ends at another time.
    """
    file = path / CONFIG_FILE
    has_checkpoints = (path / LAST_FILE).exists() or (path / BEST_FILE).exists()
    if has_checkpoints and not file.exists():
        raise RunError(f"{path} has checkpoints but no {CONFIG_FILE}; use another --run-dir")
    if not has_checkpoints:  # nothing has been trained, so the settings may change
        return config, frozenset()
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    try:
        # Settings that are newer than the run had their default, or what runs did before.
        written = as_earlier(json.loads(file.read_text()))
        there = TrainConfig.model_validate(defaults | written | _place_of(config))
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{file} cannot be read: {reason}; use another --run-dir") from error
    decided = _DECIDED
    if config.dataset not in NAMED_DATASETS:
        decided |= RULE_FIELDS | (frozenset() if config.init is None else INITIAL_FIELDS)
    config = config.with_given({name: getattr(there, name) for name in decided - config.given})
    before, now = (
        with_absolute_paths(one.model_dump(mode="json", exclude=set(RESUMABLE_FIELDS)))
        for one in (there, config)
    )
    changed = frozenset(name for name in now if before[name] != now[name])
    if config.resume and changed <= ENDING_FIELDS:
        return config, changed
    if changed:
        listed = [
            f"{name.replace('_', '-')} is {_shown(before[name])} there and {_shown(now[name])} here"
            for name in sorted(changed)
        ]
        going_on = "add --resume to go on with it, " if changed <= ENDING_FIELDS else ""
        raise RunError(
            f"{path} holds a run with other settings: {join_first(listed)}; {going_on}use another --run-dir, "
            f"such as {another_run_dir(path)}, or delete the folder"
        )
    return config, frozenset()


def _shown(value: Any) -> Any:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else value


def _place_of(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of ``config`` that say where and how it runs, which a run's file does not have."""
    return {name: getattr(config, name) for name in RESUMABLE_FIELDS} | {"config": None, "resume": False}


def _to_line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
