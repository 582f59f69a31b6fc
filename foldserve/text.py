"""Formats untrusted text and shapes for messages, logs and tables: escaped and truncated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_SHOWN_CHARACTERS = 80
_SHOWN_ITEMS = 8
_JOINED_TEXTS = 3
# gRPC sends messages in headers of some 8 kB, and a character takes up to four bytes.
_LEGIBLE_CHARACTERS = 1500
# Characters that terminals and logs act upon instead of showing them (control characters, line separators,
# marks of writing direction), and halves of surrogate pairs, which UTF-8 and so a message cannot hold.
_ILLEGIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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
        character if character.isprintable() or character in keep else _escape_unprintable(character)
        for character in text
    )


def is_legible(text: str) -> bool:
    """Tell whether ``text`` is UTF-8 without control characters."""
    return _ILLEGIBLE.search(text) is None


def escape_controls(text: str) -> str:
    """Return ``text`` with the characters escaped that are not legible."""
    return _ILLEGIBLE.sub(_escape_character, text)


def legible(text: str) -> str:
    """Return ``text`` with the characters escaped that are not legible, truncated if it is very long."""
    if len(text) > _LEGIBLE_CHARACTERS:
        text = text[:_LEGIBLE_CHARACTERS] + "…"
    return escape_controls(text)


def join_names(names: Iterable[str]) -> str:
    """Return the first few ``names``, quoted and separated by commas, and the number of the others."""
    every = list(names)
    text = ", ".join(quote(name) for name in every[:_SHOWN_ITEMS])
    return f"{text} and {len(every) - _SHOWN_ITEMS} more" if len(every) > _SHOWN_ITEMS else text


def join_first(texts: Sequence[str], separator: str = ", ") -> str:
    """Return the first few of ``texts``, joined as they are, and how many more there are."""
    rest = len(texts) - _JOINED_TEXTS
    return separator.join(texts[:_JOINED_TEXTS]) + (f" and {rest:,} more" if rest > 0 else "")


def shape_text(shape: Sequence[int]) -> str:
    """Return ``shape`` in brackets, truncated after the first few dimensions."""
    sides = ", ".join(str(side) for side in shape[:_SHOWN_ITEMS])
    return f"[{sides}{', …' if len(shape) > _SHOWN_ITEMS else ''}]"


def _escape_character(found: re.Match[str]) -> str:
    r"""Return the character that ``found`` matched as "\x0a" or "\u2028"."""
    code = ord(found[0])
    is_byte = code <= 0xFF or 0xDC80 <= code <= 0xDCFF  # the latter: how Python decodes such a byte
    return f"\\x{code & 0xFF:02x}" if is_byte else f"\\u{code:04x}"


def _escape_unprintable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]
