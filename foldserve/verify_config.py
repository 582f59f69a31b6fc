"""Defines the settings of `foldserve models verify`, which export carries out if given a checkpoint."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from foldserve.runtime.options import Device  # noqa: TC001  # pydantic reads the annotations


class VerifyConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Verify every version in a repository: check its hashes, then replay its golden pairs."""

    repository: Path = Path("models")
    """Folder of models to verify."""
    device: Device = "auto"
    """Device that replays the golden pairs: cuda, cpu, or auto for CUDA if it works and otherwise the CPU."""
    load_timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    """Longest time to read and verify a version, in seconds. A single step may take a fifth of it, or 60
    seconds if that is more. A version that takes longer is stopped and fails."""
    against: Path | None = None
    """Folder or checkpoint of a training run: compare one version with that network again, as export does
    (needs the export extra). Exit status 1 if the version was not made from it."""
    name: str | None = None
    """With --against: name of the model. By default the name of the run folder, or the only model."""
    model_version: int | None = Field(default=None, ge=1)
    """With --against: version of the model. By default the newest."""
    data_dir: Path | None = None
    """With --against: folder with the data set's files, as for export."""
    verify_images: int | None = Field(default=None, ge=1)
    """With --against: number of test images to compare on, as for export."""

    @model_validator(mode="after")
    def _only_against(self) -> VerifyConfig:
        only = ("name", "model_version", "data_dir", "verify_images")
        given = [name for name in only if getattr(self, name) is not None]
        if given and self.against is None:
            raise ValueError(f"--{given[0].replace('_', '-')} needs --against CHECKPOINT")
        return self
