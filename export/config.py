"""What ``foldserve export`` can be told."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

from export.image_shape import parse_shape

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ExportConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Fold, convert, verify and publish a trained network as the next version in a model repository."""

    source: CliPositionalArg[Path | None] = None
    """A training run's folder (its best checkpoint is taken), a checkpoint file, or an .onnx file made
    elsewhere; none for a network of your own (--arch, --weights)."""

    repository: Path = Path("models")
    """Folder of the model repository; created where it does not exist."""

    name: str | None = None
    """Model name in the repository; by default the run folder's name."""

    precision: Literal["fp32", "fp16", "int8", "auto"] = "fp32"
    """Number format of the weights and the arithmetic. fp16 and int8 are published only where they pass what
    follows, else fp32 is, with the figures; auto tries what may be faster here."""

    max_accuracy_drop: float = Field(default=0.3, ge=0, le=100, allow_inf_nan=False)
    """Most points of accuracy, on the validation images, that a lower precision may lose."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Batch sizes, as 1,8,32, at each of which int8 (and whatever auto takes) must be faster than fp32."""

    data_dir: Path | None = None
    """Folder that holds the data set's files; found or fetched by itself where not given."""

    verify_images: int | None = Field(default=None, ge=1)
    """Test images to compare on; by default all of them up to 64 pixels a side and 1,000 above."""

    skip_same: bool = False
    """Publish nothing where the newest version already is the very same model, sound on disk."""

    arch: str | None = None
    """Your own network, as package.module:factory (its code is run), or the name of one of foldserve's; with
    a run or checkpoint, the network of your own that it was trained with."""

    weights: Path | None = None
    """The network's weights: a state dict saved by torch.save, or a .safetensors file."""

    input: str | None = None
    """The image's channels, height and width, as 3x224x224; of an .onnx file only where it leaves them
    open."""

    labels: Path | None = None
    """The classes' names in the order of the logits: UTF-8, a name a line."""

    mean: tuple[float, ...] | None = None
    """The network sees (pixel / 255 - mean) / std: one number a channel, as 0.485,0.456,0.406; 0 by
    default."""

    std: tuple[float, ...] | None = None
    """One number a channel, as 0.229,0.224,0.225; 1 by default."""

    resize: int | None = Field(default=None, ge=1)
    """Length in pixels that an image's shorter side is scaled to before its centre is cut; by default the
    longer side of --input."""

    images: Path | None = None
    """Folder of images to prove the export with; in folders named as the labels they tell the accuracy too.
    By default seeded synthetic ones."""

    output: str | None = None
    """The tensor of an .onnx file that holds the logits, where it has several outputs or probabilities."""

    as_logits: bool = False
    """Take what the network answers for logits, whatever it looks like. By default a softmax at its end is
    left out, and a network whose answers are probabilities all the same is refused."""

    @field_validator("batch_sizes", mode="before")
    @classmethod
    def _split_batch_sizes(cls, given: object) -> object:
        return given.split(",") if isinstance(given, str) else given

    @field_validator("batch_sizes")
    @classmethod
    def _check_batch_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or min(sizes) < 1:
            raise ValueError("expected batch sizes from 1 on, as 1,8,32")
        return sizes

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        return name if name is None else check_name(name)

    @field_validator("input")
    @classmethod
    def _check_input(cls, text: str | None) -> str | None:
        if text is not None:
            parse_shape(text)
        return text

    @field_validator("mean", "std")
    @classmethod
    def _check_finite(cls, numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if numbers is not None and not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"expected finite numbers, one a channel, got {_listed(numbers)}")
        return numbers

    @field_validator("std")
    @classmethod
    def _check_positive(cls, numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if numbers is not None and not all(number > 0 for number in numbers):
            raise ValueError(f"expected numbers above 0, got {_listed(numbers)}")
        return numbers

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """``input`` as numbers: channels, height, width."""
        return None if self.input is None else parse_shape(self.input)


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(map(str, numbers))


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
