"""Settings of `foldserve demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class DemoConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Trains LeNet on Fashion-MNIST, exports it, serves it and proves that all three answer alike."""

    run_dir: Path = Path("runs/lenet")
    """Where the training run, its pictures and the server's log are left."""

    repository: Path = Path("models")
    """The model repository that the exported version goes to, as REPOSITORY/lenet/VERSION."""

    epochs: int | None = Field(default=None, ge=1)
    """Epochs to train; by default those of `foldserve train`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device that trains and serves; the reference logits are always computed on the CPU."""

    data_dir: Path | None = None
    """A folder that holds Fashion-MNIST's four files; by default they are found or fetched."""
