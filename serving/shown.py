"""Texts and shapes that callers sent, as they may stand in an error message: escaped, and shortened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from serving.pb import open_inference_pb2 as pb

_SHOWN_CHARACTERS = 80
_SHOWN_ITEMS = 8


def shown(text: str) -> str:
    """Return ``text`` quoted, escaped and shortened."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def escaped(text: str, *, keep: str = "") -> str:
    """Return ``text`` with all that is not printable escaped, but for the characters in ``keep``.

    Control and format characters, line separators and marks that turn the direction of writing would let
    whoever sent them forge lines, or what a terminal shows of them.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else repr(character)[1:-1]
        for character in text
    )


def listed(names: Iterable[str]) -> str:
    """Return ``names`` as a readable list, the first few of them."""
    every = list(names)
    text = ", ".join(shown(name) for name in every[:_SHOWN_ITEMS])
    return f"{text} and {len(every) - _SHOWN_ITEMS} more" if len(every) > _SHOWN_ITEMS else text


def shown_parameter(parameter: pb.InferParameter) -> str:
    """Return a parameter's kind and value; "empty" where it has none."""
    kind = parameter.WhichOneof("parameter_choice")
    # Not str(parameter): protobuf's text of a long value takes seconds.
    return f"{kind} {shown(str(getattr(parameter, kind)))}" if kind else "empty"


def shape_text(shape: Sequence[int]) -> str:
    """Return ``shape`` in brackets, the first few of its sides."""
    sides = ", ".join(str(side) for side in shape[:_SHOWN_ITEMS])
    return f"[{sides}{', …' if len(shape) > _SHOWN_ITEMS else ''}]"
