"""Settings of `foldserve runs` and `foldserve tune`; the attributes' docstrings are the flags' help."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

from foldserve.training.choosing.ranges import Range, default_ranges, parse_ranges
from foldserve.training.config import TrainConfig

MOST_COMPARED = 30


class ListRunsConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """List the training runs in a folder."""

    folder: CliPositionalArg[Path] = Path("runs")
    """Folder of run folders, or one run's folder."""

    sort: Literal["date", "accuracy", "name"] = "date"
    """Order: date (the latest last), accuracy (the best in validation last) or name."""


class CompareRunsConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Compare runs: a table, the settings that differ, and their curves in one picture."""

    runs: CliPositionalArg[list[Path]] = Field(min_length=1, max_length=MOST_COMPARED)
    """Run folders to compare."""

    out: Path = Path("runs-compared.png")
    """Picture to write; an earlier one is replaced."""

    @field_validator("out")
    @classmethod
    def _check_suffix(cls, out: Path) -> Path:
        if out.suffix.lower() != ".png":
            raise ValueError("expected a file that ends in .png")
        return out


class TuneConfig(TrainConfig, frozen=True):
    """Search for good settings by training many times, each judged on the validation images alone.

    All flags of `foldserve train` apply to each training; those with a range are chosen by the search. Run
    the same command again to go on with an interrupted search, or with more --trials. --run-dir is its
    folder, by default runs/tune-ARCH, or runs/tune-DATASET for a folder or a table if --arch is not given.
    """

    trials: int = Field(20, ge=1, le=10_000)
    """Number of trainings, over all starts."""

    range: tuple[str, ...] = ()
    """Settings to search and their ranges: NAME=LOW:HIGH, NAME=LOW:HIGH:log, or NAME=A/B/C to choose from,
    such as lr=0.01:0.3:log or optimizer=sgd/adamw; several with commas. Default: lr, weight-decay,
    label-smoothing, warmup and crop-padding."""

    jobs: int = Field(1, ge=1, le=256)
    """Processes that train at the same time; each gets its share of the CPUs."""

    prune: bool = True
    """Stop a training early whose validation figure is below the median of the others at the same epoch."""

    @field_validator("range")
    @classmethod
    def _check_ranges(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        parse_ranges(texts)
        return texts

    @model_validator(mode="after")
    def _check_study(self) -> Self:
        if self.preview is not None:
            raise ValueError("--preview is for `foldserve train`")
        if self.resume:
            raise ValueError("a search goes on by itself: leave out --resume")
        if self.deterministic and self.jobs > 1:
            raise ValueError("--deterministic needs --jobs 1: else the order in which trainings end decides")
        if twice := sorted({each.name for each in parse_ranges(self.range)} & self.given):
            flag = twice[0].replace("_", "-")
            raise ValueError(f"--{flag} has a value and a range: give one of them")
        is_pruned = "prune_images" in self.given and self.prune_images > 0
        if is_pruned and any(each.name == "sampler" for each in self.ranges):
            raise ValueError("--prune-images is not combined with a balanced sampler: leave out one of them")
        if not self.ranges:
            raise ValueError("every setting that is usually searched has a value: give a --range")
        return self

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The ranges to search: those given, or the usual ones without what has a value."""
        if self.range:
            return parse_ranges(self.range)
        return tuple(each for each in default_ranges(self.optimizer) if each.name not in self.given)

    @property
    def folder(self) -> Path:
        """Folder of the search."""
        return self.run_dir if "run_dir" in self.given else Path("runs") / f"tune-{self.run_dir.name}"

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings given for every training, as JSON values by name."""
        own = TuneConfig.model_fields.keys() - TrainConfig.model_fields.keys()
        names = self.given - own - {"run_dir", "config", "resume"}
        return self.model_dump(mode="json", include=set(names))
