"""Reads the ranges that a search chooses settings from, and checks them against the settings' own limits."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from foldserve.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

# The settings that a search may choose: those of the training itself, not of its data, length or machine.
SEARCHABLE = frozenset(
    {
        "activation",
        "augment_until",
        "auto_augment",
        "backbone_lr_scale",
        "batch_norm",
        "batch_size",
        "border",
        "class_weights",
        "clip_norm",
        "color_jitter",
        "crop_padding",
        "cutmix",
        "dropout",
        "ema_decay",
        "erase_probability",
        "flip",
        "hue_jitter",
        "label_smoothing",
        "lr",
        "mixup",
        "optimizer",
        "rand_magnitude",
        "rand_operations",
        "sampler",
        "schedule",
        "smallest_crop",
        "warmup",
        "weight_decay",
        "width",
    }
)
# Digits of a chosen number: the flags at the end repeat the training exactly.
_DIGITS = 4
_MOST_RANGES, _MOST_CHOICES = 30, 100
_FORM = "expected NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A/B/C"


@dataclass(frozen=True)
class Range:
    """What one setting is chosen from: numbers between two, or some values.

    Attributes:
        kind: "int" and "float" have ``low`` and ``high``, both possible; "choice" has ``choices``.
        log: whether all orders of magnitude are as likely.
    """

    name: str
    kind: Literal["int", "float", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the range as the flag takes it."""
        flag = self.name.replace("_", "-")
        if self.kind == "choice":
            return f"{flag}={'/'.join(self.choices)}"
        return f"{flag}={self.low:g}:{self.high:g}{':log' if self.log else ''}"

    def rounded(self, number: float) -> float:
        """Return ``number`` with few digits, still inside the range."""
        short = float(f"{number:.{_DIGITS}g}")
        return min(max(short, self.low), self.high)

    def drawn_as(self, value: Any) -> int | float | str | None:
        """Return ``value`` as a search would draw it; None if it cannot be drawn."""
        if self.kind == "choice":
            return next((choice for choice in self.choices if _same(choice, value)), None)
        is_inside = isinstance(value, int | float) and self.low <= value <= self.high
        return value if is_inside else None


def _same(choice: str, value: Any) -> bool:
    """Tell whether the text of a choice means ``value``: "0.10" is 0.1, and "True" is true."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(choice) == value
        except ValueError:
            return False
    return choice.lower() == str(value).lower()


def parse_ranges(texts: Iterable[str]) -> tuple[Range, ...]:
    """Return the ranges that ``texts`` describe.

    Raises:
        ValueError: a text is malformed, or names no setting or values that it cannot have.
    """
    ranges = tuple(_parse(text) for text in texts)
    names = [each.name for each in ranges]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0].replace('_', '-')} has two ranges; give it one")
    if len(ranges) > _MOST_RANGES:
        raise ValueError(f"{len(ranges)} ranges are more than {_MOST_RANGES}")
    return ranges


def default_ranges(optimizer: str) -> tuple[Range, ...]:
    """Return the ranges that are searched if none are given: a decade around what usually works."""
    rates = "lr=0.0003:0.01:log" if optimizer == "adamw" else "lr=0.01:0.3:log"
    return parse_ranges(
        (rates, "weight-decay=1e-5:5e-3:log", "label-smoothing=0:0.15", "warmup=0.05:0.4", "crop-padding=0:3")
    )


def _parse(text: str) -> Range:
    flag, equals, values = text.strip().partition("=")
    name = flag.strip().replace("-", "_")
    if not equals or not values:
        raise ValueError(f"{_FORM} (given {text})")
    if name not in SEARCHABLE:
        near = difflib.get_close_matches(name, SEARCHABLE, n=1)
        hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
        known = ", ".join(sorted(each.replace("_", "-") for each in SEARCHABLE))
        raise ValueError(f"{flag} is no setting to search{hint or f': those are {known}'}")
    kind = _kind(name)
    found = (
        _parse_choices(name, values) if kind == "choice" or "/" in values else _parse_numbers(name, values)
    )
    for value in found.choices or (found.low, found.high):
        _check(found, value)
    return found


def _kind(name: str) -> Literal["int", "float", "choice"]:
    annotation = TrainConfig.model_fields[name].annotation
    kinds = {annotation, *get_args(annotation)}
    if get_origin(annotation) is Literal or bool in kinds or str in kinds:
        return "choice"
    return "int" if int in kinds else "float"


def _parse_choices(name: str, values: str) -> Range:
    choices = tuple(value.strip() for value in values.split("/"))
    flag = name.replace("_", "-")
    if not all(choices) or len(set(choices)) < len(choices):
        raise ValueError(f"{flag}={values} has an empty or doubled value; {_FORM}")
    if not 2 <= len(choices) <= _MOST_CHOICES:
        raise ValueError(f"{flag}={values} leaves no choice: give 2 to {_MOST_CHOICES} values, such as A/B")
    return Range(name, "choice", choices=choices)


def _parse_numbers(name: str, values: str) -> Range:
    flag, kind = name.replace("_", "-"), _kind(name)
    parts = values.split(":")
    is_log = parts[2:] == ["log"]
    try:
        low, high = (float(part) for part in parts[:2])
    except ValueError:
        raise ValueError(f"{_FORM} (given {flag}={values})") from None
    if len(parts) > 3 or (len(parts) == 3 and not is_log):
        raise ValueError(f"{_FORM} (given {flag}={values})")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{flag}={values}: expected a number and a larger one")
    if is_log and low <= 0:
        raise ValueError(f"{flag}={values}: a log range begins above 0")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"{flag}={values}: expected whole numbers")
    return Range(name, "int" if kind == "int" else "float", low, high, is_log)


def _check(found: Range, value: Any) -> None:
    """Check that a training can have the value, by the setting's own limits."""
    given = int(value) if found.kind == "int" else value
    try:
        TrainConfig.model_validate({found.name: given, "init": "x"})
    except ValidationError as error:
        fault = next(each for each in error.errors() if found.name in each["loc"] or not each["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        raise ValueError(f"{found}: {message[0].lower()}{message[1:]} (given {value})") from None
