"""Texts from outside as they may stand in a message, a log or a table: escaped, and shortened."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

_SHOWN_CHARACTERS = 80
_SHOWN_ITEMS = 8
# Longer texts do not fit where gRPC puts them: headers of some 8 kB, of four bytes a character at worst.
_LEGIBLE_CHARACTERS = 1500
# What terminals and logs act upon instead of showing it (control characters, separators of lines, marks that
# turn the direction of writing), and halves of surrogate pairs: no UTF-8, so no message can carry them.
_ILLEGIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def quote(text: str) -> str:
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


def is_legible(text: str) -> bool:
    """Tell whether ``text`` is UTF-8 without control characters."""
    return _ILLEGIBLE.search(text) is None


def legible(text: str) -> str:
    """Return ``text`` with what is not legible escaped, and shortened where it is very long."""
    if len(text) > _LEGIBLE_CHARACTERS:
        text = text[:_LEGIBLE_CHARACTERS] + "…"
    return _ILLEGIBLE.sub(_escape, text)


def join_names(names: Iterable[str]) -> str:
    """Return ``names`` as a readable list, the first few of them."""
    every = list(names)
    text = ", ".join(quote(name) for name in every[:_SHOWN_ITEMS])
    return f"{text} and {len(every) - _SHOWN_ITEMS} more" if len(every) > _SHOWN_ITEMS else text


def shown_parameter(parameter: Message) -> str:
    """Return a parameter's kind and value; "empty" where it has none."""
    kind = parameter.WhichOneof("parameter_choice")
    # Not str(parameter): protobuf's text of a long value takes seconds.
    return f"{kind} {quote(str(getattr(parameter, kind)))}" if kind else "empty"


def shape_text(shape: Sequence[int]) -> str:
    """Return ``shape`` in brackets, the first few of its sides."""
    sides = ", ".join(str(side) for side in shape[:_SHOWN_ITEMS])
    return f"[{sides}{', …' if len(shape) > _SHOWN_ITEMS else ''}]"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    is_byte = code <= 0xFF or 0xDC80 <= code <= 0xDCFF  # the latter: how Python reads a byte that is no UTF-8
    return f"\\x{code & 0xFF:02x}" if is_byte else f"\\u{code:04x}"
