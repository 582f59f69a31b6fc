"""Defines the settings of ``foldserve inspect``."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic resolves it at run time

from foldserve.export.image_shape import parse_shape


class InspectConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Show a network layer by layer: shapes, kernels, parameters, MACs and receptive fields."""

    target: CliPositionalArg[str]
    """Name of a network (lenet, alexnet, resnet), your own network as package.module:factory, a run folder, a
    checkpoint, the folder of a model version, or an .onnx file."""

    input: str | None = None
    """Channels, height and width of the image, such as 3x224x224. Default: 1x28x28 for a network given by
    name, otherwise as the file says."""

    classes: int | None = Field(None, ge=1)
    """Number of classes of a network given by name. Default: 10."""

    width: float | None = Field(None, gt=0)
    """Factor that multiplies the channel counts of a network given by name."""

    depth: int | None = Field(None, ge=1)
    """Number of weighted layers of a network given by name, if it comes in several depths (resnet)."""

    batch_norm: bool = True
    """Put a batch norm after each convolution of a network given by name."""

    arch: str | None = None
    """Your own network that the checkpoint was trained with, as package.module:factory. Its code is run."""

    @field_validator("input")
    @classmethod
    def _check_input(cls, text: str | None) -> str | None:
        if text is not None:
            parse_shape(text)
        return text

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """``input`` as numbers: channels, height, width."""
        return None if self.input is None else parse_shape(self.input)

    @property
    def network_settings(self) -> dict[str, object]:
        """Settings given that apply only to a network given by name, by flag."""
        given = {"--classes": self.classes, "--width": self.width, "--depth": self.depth}
        settings: dict[str, object] = {flag: value for flag, value in given.items() if value is not None}
        if not self.batch_norm:
            settings["--no-batch-norm"] = True
        return settings
