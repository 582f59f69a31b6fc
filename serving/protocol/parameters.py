"""Formats request parameters for error messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.text import quote

if TYPE_CHECKING:
    from foldserve.serving.pb import open_inference_pb2 as pb


def parameter_text(parameter: pb.InferParameter) -> str:
    """Return a parameter's kind and value; "empty" if it has none."""
    kind = parameter.WhichOneof("parameter_choice")
    # str(parameter) would take seconds for a long value.
    return f"{kind} {quote(str(getattr(parameter, kind)))}" if kind else "empty"
