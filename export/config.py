"""What ``foldserve export`` can be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ExportConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Fold, convert, verify and publish a trained network as the next version in a model repository."""

    source: CliPositionalArg[Path]
    """A training run's folder (its best checkpoint is taken) or a checkpoint file."""

    repository: Path = Path("models")
    """Folder of the model repository; created where it does not exist."""

    name: str | None = None
    """Model name in the repository; by default the run folder's name."""

    precision: Literal["fp32"] = "fp32"
    """Number format of the weights."""

    data_dir: Path | None = None
    """Folder that holds the data set's files; found or fetched by itself where not given."""

    verify_images: int | None = Field(default=None, ge=1)
    """Test images to compare on; by default all of them up to 64 pixels a side and 1,000 above."""

    skip_same: bool = False
    """Publish nothing where the newest version already is the very same model, sound on disk."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        return name if name is None else check_name(name)


def check_name(name: str) -> str:
    """Return ``name`` if it can be a model's name and folder.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be a model name; expected letters, digits, '_', '-' and '.', "
            "not beginning with '-' or '.'"
        )
    return name
