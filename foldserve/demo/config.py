"""Settings of `foldserve demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class DemoConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Trains LeNet on Fashion-MNIST, exports and serves it, and proves that all three answer the same."""

    run_dir: Path = Path("runs/lenet")
    """Folder for the training run, its pictures and the server's log."""

    repository: Path = Path("models")
    """Model repository for the exported version, REPOSITORY/lenet/VERSION."""

    epochs: int | None = Field(default=None, ge=1)
    """Number of epochs; default: that of `foldserve train`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train and serve on; the reference logits are always computed on the CPU."""

    data_dir: Path | None = None
    """Folder with Fashion-MNIST's four files; default: they are searched for, and downloaded if missing."""
