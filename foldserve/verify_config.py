"""Settings of `foldserve models verify`, carried out by serving, or by export if given a checkpoint."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from foldserve.runtime.options import Device  # noqa: TC001  # pydantic reads the annotations


class VerifyConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Check that every version in a repository still proves itself: hashes, then golden pairs."""

    repository: Path = Path("models")
    """Folder of models to verify."""
    device: Device = "auto"
    """What runs the golden pairs: auto takes CUDA where it works, cuda takes it or fails, cpu never looks."""
    load_timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    """Seconds that reading and proving a version may take, and a fifth of it, or 60, a step of it; what takes
    longer is stopped and has failed."""
    against: Path | None = None
    """A training run's folder or checkpoint: compare a version with that network once more, as exporting
    does (needs the export extra); exit status 1 where the version was not made from it."""
    name: str | None = None
    """With --against: the model; by default the run folder's name, or the only one there is."""
    model_version: int | None = Field(default=None, ge=1)
    """With --against: the version; the newest by default."""
    data_dir: Path | None = None
    """With --against: folder that holds the data set's files, as in export."""
    verify_images: int | None = Field(default=None, ge=1)
    """With --against: test images to compare on, as in export."""

    @model_validator(mode="after")
    def _only_against(self) -> VerifyConfig:
        only = ("name", "model_version", "data_dir", "verify_images")
        given = [name for name in only if getattr(self, name) is not None]
        if given and self.against is None:
            raise ValueError(f"--{given[0].replace('_', '-')} goes with --against CHECKPOINT")
        return self
