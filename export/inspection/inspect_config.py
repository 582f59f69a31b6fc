"""What ``foldserve inspect`` can be told."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic resolves it at run time

from foldserve.export.image_shape import parse_shape


class InspectConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Show a network layer by layer: shapes, kernels, parameters, MACs and receptive fields."""

    target: CliPositionalArg[str]
    """A network's name (lenet, alexnet, resnet), your own as package.module:factory, a run folder, a
    checkpoint, a model version's folder or an .onnx file."""

    input: str | None = None
    """The image's channels, height and width, as 3x224x224; 1x28x28 for a name, else what the file says."""

    classes: int | None = Field(None, ge=1)
    """Number of classes of a network given by name; 10 by default."""

    width: float | None = Field(None, gt=0)
    """Factor on the channels of a network given by name."""

    depth: int | None = Field(None, ge=1)
    """Weighted layers of a network given by name, where it comes in several depths (resnet)."""

    batch_norm: bool = True
    """Batch norm after each convolution of a network given by name."""

    arch: str | None = None
    """Your own network that the checkpoint was trained with, as package.module:factory; its code is run."""

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
        """The settings given that only make sense for a network given by name, by flag."""
        given = {"--classes": self.classes, "--width": self.width, "--depth": self.depth}
        settings: dict[str, object] = {flag: value for flag, value in given.items() if value is not None}
        if not self.batch_norm:
            settings["--no-batch-norm"] = True
        return settings
