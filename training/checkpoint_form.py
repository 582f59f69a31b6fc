"""Validates the content of a checkpoint file: its fields, their types, and that they are consistent.

Whoever wrote the file, and whatever has happened to it since: content that passes can be used safely.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foldserve.imaging import ImageSpec

_Number = Annotated[float, Field(allow_inf_nan=True)]
_Weights = dict[str, torch.Tensor]


class _Form(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False, extra="ignore"
    )


class _ImageForm(_Form):
    channel_order: Literal["L", "RGB"]
    height: int
    width: int
    resize_shorter_side: int
    # Runs from before there were several rules.
    decode: Literal["full", "scaled"] = "full"
    fit: Literal["shorter-side", "crop", "pad", "stretch"] = "shorter-side"


class _TotalsForm(_Form):
    losses: torch.Tensor
    correct: torch.Tensor
    seen: int = Field(ge=0, le=2**53)
    elapsed_s: _Number = Field(ge=0)


class _PruningForm(_Form):
    before: torch.Tensor
    latest: torch.Tensor


class TrainerForm(_Form):
    """The state that resumes a run."""

    step: int = Field(ge=0)
    optimizer: dict[str, Any]
    scaler: dict[str, int | _Number]
    totals: _TotalsForm | None
    history: list[dict[str, int | _Number]]
    # Only in runs with --init, --class-weights, --prune-images and --time-limit.
    initial: list[str] = Field(default_factory=list)
    class_weights: torch.Tensor | None = None
    pruning: _PruningForm | None = None
    spent_s: _Number = Field(0.0, ge=0)
    planned_steps: int | None = Field(None, ge=1)


class CheckpointForm(_Form):
    """The fields of `foldserve.training.checkpoint.Checkpoint` as plain types and tensors."""

    arch: str
    arch_args: dict[str, bool | int | float | str | None]
    image: _ImageForm
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    dataset: str
    metrics: dict[str, int | _Number]
    weights: _Weights
    ema_weights: _Weights | None
    trainer: dict[str, Any] | None
    fingerprint: str = ""
    group_by: str = ""
    path_column: str = ""
    label_column: str = ""

    @model_validator(mode="after")
    def _check_fit(self) -> CheckpointForm:
        spec = ImageSpec(**self.image.model_dump())
        if not len(self.mean) == len(self.std) == spec.channels:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} standard deviations for {spec.channels} channels"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("two labels are equal")
        expected = {
            "in_channels": spec.channels,
            "height": spec.height,
            "width": spec.width,
            "class_count": len(self.labels),
        }
        for name, value in expected.items():
            if self.arch_args.get(name, value) != value:
                raise ValueError(f"{name} is {self.arch_args[name]}, but image and labels say {value}")
        return self


def read_form(form: type[BaseModel], payload: Any) -> dict[str, Any]:
    """Return the fields of ``payload`` that ``form`` has.

    Raises:
        ValueError: a field is missing, has a wrong type, or does not fit the others; names the first one.
    """
    try:
        checked = form.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {reason}" if where else reason) from error
    return {name: getattr(checked, name) for name in form.model_fields}
