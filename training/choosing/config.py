"""Settings of `foldserve runs` and `foldserve tune`; the attributes' docstrings are the flags' help."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

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
