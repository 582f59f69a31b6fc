"""Reads class names from a UTF-8 text file, one per line, in the order of the logits."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from foldserve.export.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the names in ``path``. A byte order mark, CRLF and one final newline are ignored.

    Raises:
        SourceError: it cannot be read, is not UTF-8, or has an empty or repeated line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"--labels {path} cannot be read: {error.strerror or error}") from error
    lines = _decode(content, path).replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    labels = tuple(line.strip() for line in lines)
    if labels == ("",):
        raise SourceError(f"--labels {path} is empty; expected one class name per line")
    first_line: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label:
            raise SourceError(f"--labels {path}: line {number} is empty; expected one class name per line")
        if not label.isprintable():
            raise SourceError(f"--labels {path}: line {number} holds control characters: {label!r}")
        if label in first_line:
            raise SourceError(
                f"--labels {path}: {label!r} is in line {first_line[label]} and in line {number}; "
                "expected a different name for each class"
            )
        first_line[label] = number
    return labels


def check_label_count(labels: tuple[str, ...], class_count: int, path: Path | None) -> None:
    """Check that there is one label per class; ``path`` is the file that they were read from, if any.

    Raises:
        SourceError: there are more or fewer.
    """
    if len(labels) != class_count:
        source = "its own metadata" if path is None else f"--labels {path}"
        raise SourceError(
            f"{source} has {len(labels)} names, but the network outputs {class_count} classes; expected one "
            "name per class, in the order of the logits"
        )


def _decode(content: bytes, path: Path) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SourceError(f"--labels {path} is UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(f"--labels {path} is not UTF-8: see line {line}; save it as UTF-8") from error
