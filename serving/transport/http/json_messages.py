"""Reads JSON texts from strangers: bounded, strict, with messages that name the place.

The classes are the requests' JSON part as the Open Inference Protocol and Triton's binary extension define
it; fields that they do not know are ignored, as protobuf ignores them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Never, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from foldserve.serving.errors import InvalidArgumentError
from foldserve.text import quote

# Parsing and checking a MiB takes up to 0.2 s, partly without letting other threads run: many pixels belong
# into the binary part.
MAX_JSON_BYTES = 4 * 1024 * 1024

# No request has so many inputs, outputs, dimensions or parameters. Checked before the items are: pydantic
# collects an error of some microseconds for each wrong one.
_MOST_ITEMS = 64


def _check_length(items: Any) -> Any:
    if isinstance(items, list | dict) and len(items) > _MOST_ITEMS:
        raise PydanticCustomError(
            "too_long", "{count} items; send at most {most}", {"count": len(items), "most": _MOST_ITEMS}
        )
    return items


def _check_numbers(parameters: Any) -> Any:
    """Refuse whole numbers that would be rounded to floats."""
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise PydanticCustomError(
                "too_large", "{name} is a whole number of more than 64 bits", {"name": quote(name)}
            )
    return parameters


_T = TypeVar("_T")
_Few: TypeAlias = Annotated[_T, BeforeValidator(_check_length)]
_Int64: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Parameters: TypeAlias = Annotated[_Few[dict[str, bool | int | float | str]], BeforeValidator(_check_numbers)]

_M = TypeVar("_M", bound=BaseModel)


# A number such as 1e999 becomes infinite, which no answer in JSON could repeat.
class _Json(BaseModel, strict=True, allow_inf_nan=False, use_attribute_docstrings=True):
    pass


class InputTensor(_Json):
    """An input: its elements in ``data``, or behind the JSON if it has ``binary_data_size``."""

    name: str
    """The input's name."""
    datatype: str
    """UINT8 for pixels, BYTES for encoded images."""
    shape: _Few[list[_Int64]]
    """[N, C, H, W] for pixels; [N] or [N, 1] for encoded images."""
    parameters: Parameters = Field(default_factory=dict)
    """binary_data_size: bytes of this input behind the JSON. content_type: base64, for BYTES in data."""
    data: list[Any] | None = None
    """Elements in row-major order, flat or nested."""


class RequestedOutput(_Json):
    """An output that the caller wants."""

    name: str
    """The output's name."""
    parameters: Parameters = Field(default_factory=dict)
    """classification: number of classes, as text; binary_data: whether the values come behind the JSON."""


class InferRequest(_Json):
    """The JSON part of an inference request."""

    id: str = ""
    """Any text; the response has the same."""
    parameters: Parameters = Field(default_factory=dict)
    """timeout: microseconds to wait at most; binary_data_output: default of binary_data for all outputs."""
    inputs: _Few[list[InputTensor]]
    """The model's single input."""
    outputs: _Few[list[RequestedOutput]] = Field(default_factory=list)
    """The outputs wanted; empty for all."""


class IndexRequest(_Json):
    """Which versions to list."""

    ready: bool = False
    """Only those that serve."""


class LoadRequest(_Json):
    """A request to load or unload a model."""

    parameters: Parameters = Field(default_factory=dict)
    """None are supported for loading; unload_dependents is ignored."""


def read_json(message_type: type[_M], content: bytes, *, what: str = "the body", advice: str = "") -> _M:
    """Return the message in ``content``; an empty content is an empty object.

    Args:
        message_type: of the message.
        content: the JSON text.
        what: what ``content`` is, for the text of an error.
        advice: what to do if it is not JSON, behind that text.

    Raises:
        InvalidArgumentError: it is not JSON, too large, or not such a message.
    """
    if len(content) > MAX_JSON_BYTES:
        raise InvalidArgumentError(
            f"the JSON has {len(content)} bytes; at most {MAX_JSON_BYTES} are read: send the pixels in the "
            "binary extension (Inference-Header-Content-Length), or encoded images to /classify"
        )
    try:
        plain = json.loads(content or b"{}", parse_constant=_refuse_constant)
        if b"\\u" in content:  # perhaps half of a surrogate pair, which no other message can hold
            json.dumps(plain, ensure_ascii=False).encode()
    # RecursionError: nested too deep. ValueError: also a number of more than 4,300 digits, or what is not or
    # does not become UTF-8.
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{what} is not JSON: {_reason(error)}{advice}") from None
    try:
        return message_type.model_validate(plain)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        # A parameter has an error for each type that it may have, of which only one fits.
        first = next((each for each in errors if each["type"] == "finite_number"), errors[0])
        place = ".".join(str(part) for part in first["loc"][:6]) or "the body"
        raise InvalidArgumentError(f"{quote(place)} in the JSON is wrong: {first['msg']}") from None


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not a JSON number")


def _reason(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)
