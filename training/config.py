"""Settings of ``foldserve train``."""

from __future__ import annotations

from pathlib import Path  # pydantic resolves the annotations at run time
from typing import Literal

from pydantic import BaseModel, Field

# What may differ when a run is taken up again: where and on what it runs, not what it computes.
RESUMABLE_FIELDS = frozenset({"data_dir", "run_dir", "device", "threads"})


class TrainConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Train a network, with progress and checkpoints; the same command again resumes an interrupted run."""

    arch: str = "lenet"
    """The network, by its name in the registry."""

    dataset: str = "fashion-mnist"
    """The data set, by name; it is found or fetched by itself."""

    data_dir: Path | None = None
    """Folder that holds the data set's files; nothing else is searched then."""

    run_dir: Path = Path("runs/lenet")
    """Folder of the run: checkpoints, metrics and report."""

    epochs: int = Field(12, ge=1)
    """Passes over the training images; the schedule is stretched over all of them."""

    batch_size: int = Field(128, ge=2)
    """Images a step; a last incomplete batch of an epoch is left out, another one each epoch."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9, or AdamW."""

    lr: float = Field(0.1, gt=0)
    """Highest learning rate of the one-cycle schedule."""

    warmup: float = Field(0.2, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; then it falls to 0 along a cosine."""

    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay, on the weights of convolutions and linear layers only."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target's probability that is spread evenly over all classes."""

    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay a step of the moving average of the weights, which is then what is served; 0 keeps none."""

    augment: bool = True
    """Augment the training images: random crop, mirroring where that keeps the class, random erasing."""

    crop_padding: int = Field(1, ge=0)
    """Pixels of black border from which the random crop is cut."""

    erase_probability: float = Field(0.0, ge=0, le=1)
    """Probability with which a rectangle of a training image is blackened."""

    batch_norm: bool = True
    """Batch norm after each convolution."""

    activation: Literal["relu", "sigmoid"] = "relu"
    """The activation function."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which a feature before each linear layer is zeroed while training."""

    validation_count: int = Field(5000, ge=1)
    """Training images held out to choose the best epoch by; the same ones for every seed."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the images and their augmentation."""

    deterministic: bool = False
    """Use deterministic algorithms only: bit-identical weights from run to run on one machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is a GPU."""

    threads: int | None = Field(None, ge=1)
    """Threads on the CPU; by default tried out at the start (all of them with --deterministic)."""
