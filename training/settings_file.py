"""Reads the settings of a run from its config.json, also those that earlier versions wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldserve.tables.open_table import TABLE_SUFFIXES
from foldserve.training.recipes import NAMED_DATASETS

if TYPE_CHECKING:
    from collections.abc import Collection

CONFIG_FILE = "config.json"
# May differ when a run is resumed: they say where and on which device it runs, not what it computes.
RESUMABLE_FIELDS = frozenset(
    {"data_dir", "run_dir", "device", "threads", "checkpoint_every", "mlflow", "preview", "config", "resume"}
)
# May differ when a run goes on with --resume: when it ends.
ENDING_FIELDS = frozenset({"epochs", "patience", "time_limit"})

_OLDER_NAMES = {"skip_unreadable": "skip_broken"}
# What runs did before there was a setting for it: it is missing in their config.json.
EARLIER_SETTINGS = {"border": "black", "augment_until": 1.0, "prune_images": 0.0}
_MOST_CONFIG_BYTES = 1024 * 1024


def renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` under today's names, as the config.json of an earlier run has older ones."""
    return {_OLDER_NAMES.get(name, name): value for name, value in settings.items()}


def as_earlier(there: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run's file, completed by what earlier runs did without saying so."""
    is_whole = "crop_padding" in there  # and not a few settings that somebody wrote
    return EARLIER_SETTINGS | there if is_whole else there


def default_run_dir(asked: dict[str, Any]) -> Path:
    """Return the run folder if none is given: runs/ARCH, or runs/DATASET if the network is chosen."""
    dataset = asked.get("dataset", "fashion-mnist")
    name = asked.get("arch", "lenet")
    if "arch" not in asked and isinstance(dataset, str) and dataset not in NAMED_DATASETS:
        place = Path(dataset).resolve()
        if place.suffix.lower() in TABLE_SUFFIXES:  # perhaps several, with commas between
            place = Path(dataset.split(",")[0]).with_suffix("")
        name = place.name or "images"
    return Path("runs") / str(name).rpartition(":")[2]


def read_settings(known: Collection[str], given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the file that ``given`` names by --config, or by --resume and --run-dir.

    ``known`` are the names of all settings.

    Raises:
        ValueError: the file cannot be read, or has no settings of a run.
    """
    file = Path(given["config"]) if given.get("config") else None
    if file is not None and file.is_dir():
        file /= CONFIG_FILE
    if str(given.get("resume", False)).lower() in ("1", "true", "yes", "on"):
        folder = Path(given.get("run_dir") or default_run_dir(given))
        if file is not None:
            raise ValueError("--config and --resume both name settings; give one of them")
        file = folder / CONFIG_FILE
        if not file.exists():
            raise ValueError(
                f"--resume: {folder} has no run to go on with (no {CONFIG_FILE}); give its --run-dir, or "
                "leave out --resume"
            )
    if file is None:
        return {}
    try:
        with file.open("rb") as stream:
            there = json.loads(stream.read(_MOST_CONFIG_BYTES))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; expected the {CONFIG_FILE} of a run") from error
    there = renamed(there) if isinstance(there, dict) else there
    if not isinstance(there, dict) or (unknown := sorted(there.keys() - set(known))):
        what = f"unknown settings: {', '.join(unknown[:3])}" if isinstance(there, dict) else "no settings"
        raise ValueError(f"{file} has {what}; expected the {CONFIG_FILE} of a run")
    there = as_earlier(there)
    return {name: value for name, value in there.items() if name not in RESUMABLE_FIELDS}
