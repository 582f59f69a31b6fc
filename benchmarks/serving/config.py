"""Settings of `python -m benchmarks.serving`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations
from typing import Literal

from pydantic import BaseModel, Field

Group = Literal["lenet", "trained", "lone", "rows", "alexnet"]


class BenchServingConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Measure foldserve against bare loops, mosec and raw ONNX Runtime, as ratios in one run."""

    repository: Path | None = None
    """Repository to take the lenet that `make demo` trained from, and alexnet; one that it lacks is made with
    seeded weights."""
    groups: list[Group] = Field(default=["lenet", "trained", "lone", "rows", "alexnet"], min_length=1)
    """Parts to measure: lenet (LeNet-5) and trained (that of `make demo`) at concurrency 32; LeNet-5 with
    a lone client and in rows (32 images a request); alexnet at 16."""
    rounds: int = Field(default=11, ge=1)
    """Interleaved rounds; the table shows medians and, in brackets, the least and the most."""
    seconds: float = Field(default=1.0, gt=0)
    """Aim for the length of one measurement; the number of requests is fixed from the warm-up's rate."""
    processors: int = Field(default=2, ge=1)
    """Processors that servers and clients share: the first so many of those this process may use."""
    json_file: Path | None = None
    """File to write every single measurement to, as JSON."""
