"""Trains one run in a process of its own, and keeps its figures as a row of JSON lines.

A row is not measured again while the rule chooses what it chose then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from foldserve.demo.children import ending_with_us, environment_without_settings
from foldserve.training.chance import chance_warning
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.folder_recipe import choose_settings
from foldserve.training.recipes import RULE_FIELDS
from foldserve.training.run.run_folder import METRICS_FILE
from foldserve.training.settings_file import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

RULE = "rule"
# Without a time limit, one of the others changes nothing, and the rule never prunes.
_FIELDS = sorted(RULE_FIELDS - {"auto_augment_steps", "prune_images"})
# Data set, network, and `RULE` or the name of a trial by hand.
Key = tuple[str, str, str]


class Row(BaseModel, frozen=True, extra="forbid"):
    """The figures of one run; ``settings`` names them, and ``chosen`` are those that the rule is about."""

    data: str
    arch: str
    settings: str
    chosen: dict[str, Any]
    side: int = Field(ge=1)
    classes: int = Field(ge=1)
    train_count: int = Field(ge=1)
    test_count: int = Field(ge=1)
    largest_class: float
    steps: int
    took_s: float
    validation_accuracy: float
    test_accuracy: float
    test_macro_f1: float

    @property
    def key(self) -> Key:
        """What there is one row of."""
        return self.data, self.arch, self.settings

    @property
    def is_current(self) -> bool:
        """Whether the rule would choose the same settings today."""
        now = choose_settings(self.arch, "default", self.train_count, self.side)
        return self.settings != RULE or all(self.chosen.get(name) == now[name] for name in _FIELDS)

    @property
    def is_at_chance(self) -> bool:
        """Whether the network names the largest class as well as it tells the classes apart."""
        figures = {
            "test_accuracy": self.test_accuracy,
            "test_largest_class": self.largest_class,
            "test_images": self.test_count,
        }
        return chance_warning(figures) is not None


def read_rows(file: Path) -> dict[Key, Row]:
    """Return the rows of ``file`` that still hold, by key; of several for one key the last.

    Raises:
        SystemExit: a line is none of a row.
    """
    rows: dict[Key, Row] = {}
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
        try:
            row = Row.model_validate_json(line)
        except ValidationError as error:
            raise SystemExit(
                f"{file}, line {number} is no row of this benchmark: {error.errors()[0]}"
            ) from None
        rows[row.key] = row
    return {key: row for key, row in rows.items() if row.is_current}


def append_row(file: Path, row: Row) -> None:
    """Add a row, in one write."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(row.model_dump_json() + "\n")


def train_count_of(folder: Path) -> int:
    """Return with how many images a run on ``folder`` trains: a tenth of them is for validation."""
    count = _file_count(folder)
    return count - count // 10


def measure(key: Key, folder: Path, run_dir: Path, flags: Sequence[str]) -> Row:
    """Train on ``folder`` into ``run_dir``, going on if that was begun, and return the figures.

    Raises:
        CalledProcessError: training failed.
    """
    data, arch, settings = key
    words = ["train", "--dataset", folder, "--arch", arch, "--run-dir", run_dir, *flags]
    command = [sys.executable, "-m", "foldserve", *map(str, words)]
    started = time.monotonic()
    subprocess.run(ending_with_us(command), check=True, env=environment_without_settings())
    took_s = time.monotonic() - started
    best = load_checkpoint(run_dir)
    history = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]
    config: Mapping[str, Any] = json.loads((run_dir / CONFIG_FILE).read_text())
    metrics: Mapping[str, Any] = best.metrics
    return Row(
        data=data,
        arch=arch,
        settings=settings,
        chosen={name: config[name] for name in _FIELDS},
        side=min(best.image.height, best.image.width),
        classes=len(best.labels),
        train_count=_file_count(folder) - int(config["validation_count"]),
        test_count=metrics["test_images"],
        largest_class=metrics["test_largest_class"],
        steps=history[-1]["step"],
        took_s=round(took_s, 1),
        validation_accuracy=metrics["validation_accuracy"],
        test_accuracy=metrics["test_accuracy"],
        test_macro_f1=metrics["test_macro_f1"],
    )


def _file_count(folder: Path) -> int:
    return sum(1 for path in (folder / "train").rglob("*") if path.is_file())
