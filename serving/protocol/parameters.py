"""Shows parameters of requests in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.text import quote

if TYPE_CHECKING:
    from foldserve.serving.pb import open_inference_pb2 as pb


def parameter_text(parameter: pb.InferParameter) -> str:
    """Return a parameter's kind and value; "empty" where it has none."""
    kind = parameter.WhichOneof("parameter_choice")
    # Not str(parameter): protobuf's text of a long value takes seconds.
    return f"{kind} {quote(str(getattr(parameter, kind)))}" if kind else "empty"
