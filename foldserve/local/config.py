"""Defines the settings of `foldserve predict` and `foldserve evaluate`; docstrings are the flags' help."""

from __future__ import annotations

from pathlib import Path  # pydantic reads the annotations

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

from foldserve.runtime.options import Device  # noqa: TC001  # pydantic reads the annotations

OUTPUT_SUFFIXES = (".jsonl", ".csv", ".parquet")


class _LocalConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """The settings that both commands have."""

    model: CliPositionalArg[Path]
    """Folder of a model, such as models/lenet (its promoted or newest version is used), or of a version."""

    device: Device = "auto"
    """Device: cuda, cpu, or auto for CUDA if it works and otherwise the CPU."""

    batch_size: int = Field(default=32, ge=1, le=65536)
    """Most images in one execution."""

    min_confidence: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Probability below which the answer is `unknown`."""

    path_column: str | None = None
    """Column of a table that holds the image files, or their bytes. Default: image, path, file_name and other
    usual names."""

    load_timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    """Longest time to read and verify the version, in seconds."""


class PredictConfig(_LocalConfig, frozen=True):
    """Label images with a published version, in this process, and write one row per image."""

    source: CliPositionalArg[Path]
    """Folder of images, one image, or tables of them: .csv, .jsonl or .parquet, several with commas or a
    folder."""

    out: Path
    """File to write: .jsonl, .csv or .parquet. It appears when it is complete; until then it is OUT.part."""

    top_k: int = Field(default=1, ge=1)
    """Number of labels per image."""

    resume: bool = False
    """Go on with OUT.part of a run that was stopped."""

    overwrite: bool = False
    """Replace the output, and begin anew."""

    @field_validator("out")
    @classmethod
    def _check_suffix(cls, out: Path) -> Path:
        if out.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ValueError(f"expected a file that ends in {', '.join(OUTPUT_SUFFIXES)}")
        return out

    @model_validator(mode="after")
    def _only_one(self) -> PredictConfig:
        if self.resume and self.overwrite:
            raise ValueError("give --resume or --overwrite, not both")
        return self


class EvaluateConfig(_LocalConfig, frozen=True):
    """Judge a published version on labelled images, in this process."""

    data: Path
    """Labelled images: FOLDER/LABEL/*, or a table of files and labels: .csv, .jsonl or .parquet."""

    label_column: str | None = None
    """Column of a table that holds the labels. Default: label, class and other usual names."""

    split: str | None = Field(default=None, min_length=1)
    """Split to judge, if the data has splits (folders, a column split, files named by them): test, val, train
    or another name, or all. Default: test if there is one, else val, else all."""

    out: Path | None = None
    """Folder for report.html (confusion, reliability, worst mistakes), metrics.json and predictions.csv.
    Default: nothing is written."""

    overwrite: bool = False
    """Replace the files of an earlier evaluation in --out."""

    against: str | None = None
    """Another version to compare with on the same images: a number (of the same model) or a folder. McNemar's
    test tells whether the difference is more than chance."""

    min_accuracy: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Accuracy, from 0 to 1, below which the exit status is 1."""

    skip_broken: bool = False
    """Leave out images that cannot be read and rows that are wrong, instead of failing."""

    worst: int = Field(default=20, ge=0, le=1000)
    """Number of mistakes to show: those with the highest probability for the wrong label."""


class DiffConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Compare two versions of a model: what they say about themselves and, on images, what they answer."""

    name: CliPositionalArg[str] = Field(min_length=1)
    """Name of the model."""

    first: CliPositionalArg[int] = Field(ge=1)
    """Version to compare."""

    second: CliPositionalArg[int] = Field(ge=1)
    """Version to compare it with."""

    repository: Path = Path("models")
    """Folder of models."""

    images: Path | None = None
    """Also compare the answers on these images: a folder of images, one image, or a table of them."""

    path_column: str | None = None
    """Column of a table that holds the image files, or their bytes. Default: image, path, file_name and other
    usual names."""

    most_shown: int = Field(default=10, ge=0, le=10_000)
    """Number of images with different answers to show: those with the largest difference first."""

    device: Device = "auto"
    """Device: cuda, cpu, or auto for CUDA if it works and otherwise the CPU."""

    load_timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    """Longest time to read and verify a version, in seconds."""
