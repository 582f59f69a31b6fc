"""`python -m benchmarks.small_data`: the rule for folders of images, against settings tried by hand.

Makes small image folders of different kinds from what is at hand (see --data), each with a split for the
test. What cannot be had here is said and left out. Trains each network once as the rule of
`foldserve.training.folder_recipe` says, all data sets before any trial by hand, and then once with each of
the trials in `benchmarks.small_data.tried`, of which the best in validation counts; where the rule is right
for 98 % of the test images, no trial could be more than 2 points better, and none is made. Each run is a
process of its own and a line in --rows when it is done, and is not repeated; a run that was ended goes on.
Prints a Markdown table, and exits with 1 if the rule is at chance somewhere, or more than 2 points behind.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, field_validator

from benchmarks.flags import parse_flags
from benchmarks.small_data.data_sets import DATA_SETS
from benchmarks.small_data.image_folder import DataUnavailableError
from benchmarks.small_data.rows import RULE, append_row, measure, read_rows, train_count_of
from benchmarks.small_data.table import is_beyond_trials, print_table
from benchmarks.small_data.tried import TRIED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.small_data.rows import Key, Row

PROGRAM = "benchmarks.small_data"
ARCHS = ("lenet", "alexnet", "resnet")


class Config(BaseModel, frozen=True, use_attribute_docstrings=True):
    """What is trained, how often, and where the figures go."""

    data: tuple[str, ...] = tuple(DATA_SETS)
    """Data sets, with commas between."""

    arch: tuple[str, ...] = ARCHS
    """Networks, with commas between."""

    hand_tuned: int = Field(10, ge=0, le=len(TRIED))
    """Number of trials by hand for each data set and network."""

    rows: Path = Path("build/small_data.jsonl")
    """File of the figures; rows are appended."""

    folder: Path = Path("runs/small_data")
    """Folder for the data and the runs."""

    threads: int = Field(1, ge=1)
    """--threads of each training."""

    table: bool = False
    """Only print the table of the rows that are there."""

    @field_validator("data", "arch")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = {*DATA_SETS, *ARCHS}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"unknown: {', '.join(unknown)}; expected {', '.join([*DATA_SETS, *ARCHS])}")
        return names


def main() -> int:
    """Make the data, train what has no row, print the table; return 1 if the rule is behind somewhere."""
    config = parse_flags(Config, PROGRAM)
    rows = read_rows(config.rows)
    if not config.table:
        folders = _folders(config)
        for arch in config.arch:  # the cheaper networks first, whose figures come sooner
            for name, folder in folders.items():
                _measure(config, rows, (name, arch, RULE), folder, [])
        for arch in config.arch:
            for name, folder in folders.items():
                rule = rows[name, arch, RULE]
                if is_beyond_trials(rule):
                    continue
                for trial in TRIED[: config.hand_tuned]:
                    flags = [*trial.flags(train_count_of(folder)), f"--image-size={rule.side}"]
                    _measure(config, rows, (name, arch, trial.name), folder, flags)
    return 1 if print_table(rows, config.data, config.arch) else 0


def _folders(config: Config) -> dict[str, Path]:
    folders = {}
    for name in config.data:
        try:
            folders[name] = DATA_SETS[name].folder(name, config.folder / "data")
        except DataUnavailableError as error:
            print(f"LEFT OUT: {name} cannot be had here: {error}", file=sys.stderr)
    return folders


def _measure(config: Config, rows: dict[Key, Row], key: Key, folder: Path, flags: Sequence[str]) -> None:
    if key in rows:
        return
    run_dir = config.folder / "runs" / "-".join(key)
    row = measure(key, folder, run_dir, [f"--threads={config.threads}", *flags])
    append_row(config.rows, row)
    rows[key] = row
    shutil.rmtree(run_dir)  # its figures are kept, and a changed rule begins anew


if __name__ == "__main__":
    sys.exit(main())
