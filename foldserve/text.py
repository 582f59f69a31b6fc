"""Formats untrusted text and shapes for messages, logs and tables: escaped and truncated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

_SHOWN_CHARACTERS = 80
_SHOWN_ITEMS = 8
# gRPC sends messages in headers of some 8 kB, and a character takes up to four bytes.
_LEGIBLE_CHARACTERS = 1500
# Characters that terminals and logs act upon instead of showing them (control characters, line separators,
# marks of writing direction), and halves of surrogate pairs, which UTF-8 and so a message cannot hold.
ILLEGIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def quote(text: str) -> str:
    """Return ``text`` quoted, escaped and truncated."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def escaped(text: str, *, keep: str = "") -> str:
    """Return ``text`` with all unprintable characters escaped, except those in ``keep``.

    Control and format characters, line separators and marks of writing direction would let the sender forge
    lines of a log or change their appearance on a terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else repr(character)[1:-1]
        for character in text
    )


def is_legible(text: str) -> bool:
    """Tell whether ``text`` is UTF-8 without control characters."""
    return ILLEGIBLE.search(text) is None


def legible(text: str) -> str:
    """Return ``text`` with illegible characters escaped, truncated if it is very long."""
    if len(text) > _LEGIBLE_CHARACTERS:
        text = text[:_LEGIBLE_CHARACTERS] + "…"
    return ILLEGIBLE.sub(escape_character, text)


def join_names(names: Iterable[str]) -> str:
    """Return the first few ``names``, quoted and separated by commas, and the number of the others."""
    every = list(names)
    text = ", ".join(quote(name) for name in every[:_SHOWN_ITEMS])
    return f"{text} and {len(every) - _SHOWN_ITEMS} more" if len(every) > _SHOWN_ITEMS else text


def shown_parameter(parameter: Message) -> str:
    """Return the kind and value of a request parameter, or "empty" if it has none."""
    kind = parameter.WhichOneof("parameter_choice")
    # Not str(parameter), which takes seconds for a long value.
    return f"{kind} {quote(str(getattr(parameter, kind)))}" if kind else "empty"


def shape_text(shape: Sequence[int]) -> str:
    """Return ``shape`` in brackets, truncated after the first few dimensions."""
    sides = ", ".join(str(side) for side in shape[:_SHOWN_ITEMS])
    return f"[{sides}{', …' if len(shape) > _SHOWN_ITEMS else ''}]"


def escape_character(found: re.Match[str]) -> str:
    r"""Return the character that ``found`` matched as "\x0a" or "\u2028"."""
    code = ord(found[0])
    is_byte = code <= 0xFF or 0xDC80 <= code <= 0xDCFF  # the latter: how Python decodes such a byte
    return f"\\x{code & 0xFF:02x}" if is_byte else f"\\u{code:04x}"
