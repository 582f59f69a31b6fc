"""Writes Markdown: a page's head, tables, and docstrings as text."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NOTE = "<!-- Written by `make reference` from the code. Change the code, not this page. -->"
# A heading of a Google docstring, and an entry below it: "name: text".
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
_ENTRY = re.compile(r"^ {4}(\*{0,2}[\w, ]+): (.*)$")


def head(title: str, text: str) -> str:
    """Return the first lines of a page."""
    return f"# {title}\n\n{_NOTE}\n\n{text}\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are one line each, and their pipes are escaped."""
    lines = [list(columns), ["---"] * len(columns), *map(list, rows)]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", one_line(text))


def one_line(text: str) -> str:
    """Return ``text`` without line breaks, its ``double`` backticks as Markdown's single ones."""
    return " ".join(text.split()).replace("``", "`")


def code(text: str) -> str:
    """Return ``text`` as inline code; nothing of nothing."""
    return f"`{text}`" if text else ""


def docstring(subject: object) -> str:
    """Return the docstring of ``subject`` as Markdown: paragraphs, and its sections as lists."""
    out: list[str] = []
    is_list = False
    for line in inspect.cleandoc(subject.__doc__ or "").splitlines():
        if _SECTION.match(line):
            out += ["", f"*{line}*", ""]
            is_list = True
        elif is_list and (entry := _ENTRY.match(line)):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        elif is_list and line.strip():
            out.append(f"  {line.strip()}")
        else:
            is_list = is_list and not line
            out.append(line.strip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).replace("``", "`").strip()
