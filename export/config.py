"""Defines the settings of ``foldserve export``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

from foldserve.export.image_shape import parse_shape
from foldserve.text import is_legible

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ExportConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Fold, convert, verify and publish a trained network as the next version in a model repository."""

    source: CliPositionalArg[Path | None] = None
    """A training run's folder (its best checkpoint is used), a checkpoint file, or an .onnx file made
    elsewhere. Omit it to export your own network (--arch, --weights)."""

    repository: Path = Path("models")
    """Folder of the model repository; created if it does not exist."""

    name: str | None = None
    """Model name in the repository. Default: the name of the run folder, .onnx file or factory."""

    precision: Literal["fp32", "fp16", "int8", "auto"] = "fp32"
    """Number format of weights and arithmetic. fp16 and int8 are published only if they pass the checks of
    the two flags below; otherwise fp32 is published and the figures are shown. auto tries each precision that
    may be faster on this machine."""

    max_accuracy_drop: float = Field(default=0.3, ge=0, le=100, allow_inf_nan=False)
    """Largest loss of accuracy, in percentage points, of fp16 or int8 on the images that judge it."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Comma-separated batch sizes. int8, and any precision that auto chooses, must be faster than fp32 at
    each of them."""

    calibrate: bool = True
    """Fit a temperature on the validation images of a training run, so that probabilities mean what they say;
    predictions do not change. Networks made elsewhere bring no such images and are never calibrated."""

    purpose: str | None = Field(default=None, max_length=500)
    """What the model is for, in a sentence: the first line of the version's README.md."""

    license: str | None = Field(default=None, max_length=100)
    """Licence of the model for its README.md, such as Apache-2.0. Default: not stated."""

    data_dir: Path | None = None
    """Folder that holds the data set's files, or the new place of the folder of images that the run was
    trained on. Default: found or downloaded automatically."""

    verify_images: int | None = Field(default=None, ge=1)
    """Number of test images to compare on. Default: all up to 64 pixels per side, 1,000 above."""

    skip_same: bool = True
    """Publish nothing if a version that is intact on disk holds exactly the same model."""

    triton: bool = False
    """Also write config.pbtxt and labels into the model's folder, so that Triton Inference Server and
    OpenVINO Model Server serve it."""

    arch: str | None = None
    """Your own network as package.module:factory (its code is run), or the name of a built-in network. With a
    run or checkpoint: the network of your own that it was trained with."""

    weights: Path | None = None
    """Weights of the network: a state dict saved by torch.save, or a .safetensors file. This flag and those
    below it but --as-logits are for networks made elsewhere; a training run says these things itself."""

    input: str | None = None
    """Channels, height and width of the image, such as 3x224x224. Needed for an .onnx file only if the file
    does not fix them."""

    labels: Path | None = None
    """UTF-8 text file of class names, one per line, in the order of the logits."""

    mean: tuple[float, ...] | None = None
    """Mean of each channel, such as 0.485,0.456,0.406: the network's input is (pixel / 255 - mean) / std.
    Default: 0."""

    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, such as 0.229,0.224,0.225. Default: 1."""

    pixel_range: Literal["0-1", "0-255"] | None = None
    """Range of the pixels that --mean is subtracted from. With 0-255 the network's input is
    (pixel - mean) / std, as for Caffe's networks. Default: 0-1."""

    channel_order: Literal["rgb", "bgr"] | None = None
    """Order of the channels that the network takes, which is that of --mean and --std too: bgr for networks
    from Caffe or OpenCV. Clients send RGB either way: the graph reverses it. Default: rgb."""

    resize: int | None = Field(default=None, ge=1)
    """Length in pixels to which the shorter side of an image is scaled before its centre is cropped. Default:
    as --fit says."""

    fit: Literal["crop", "pad", "stretch"] | None = None
    """How a picture of another shape becomes the network's input: crop keeps the centre, pad keeps all and
    mirrors it at its borders, stretch keeps all and distorts it. Default: crop."""

    images: Path | None = None
    """Folder of images to verify the export with. If its subfolders are named as the labels, accuracy is
    measured too. fp16 and int8 are calibrated with some of them and judged by the others. Default: seeded
    synthetic images, by which only fp32 can be judged."""

    output: str | None = None
    """Tensor of an .onnx file that holds the logits. Needed if the file has several outputs, or outputs
    probabilities that do not come from a final softmax."""

    as_logits: bool = False
    """Treat the network's output as logits, whatever its values. By default a final softmax is removed, and a
    network that still outputs probabilities is refused."""

    @field_validator("batch_sizes", mode="before")
    @classmethod
    def _split_batch_sizes(cls, given: object) -> object:
        return given.split(",") if isinstance(given, str) else given

    @field_validator("batch_sizes")
    @classmethod
    def _check_batch_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or min(sizes) < 1:
            raise ValueError("expected batch sizes of 1 or more, such as 1,8,32")
        return sizes

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        return name if name is None else check_name(name)

    @field_validator("purpose", "license")
    @classmethod
    def _check_legible(cls, text: str | None) -> str | None:
        if text is not None and not is_legible(text):
            raise ValueError("expected one line of UTF-8 without control characters")
        return text

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
            raise ValueError(f"expected finite numbers, one per channel, got {_listed(numbers)}")
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
