"""The messages on docs/errors.md are messages of this code."""

from __future__ import annotations

import ast
import re

from tests.support.sources import ROOT, source_files

PAGE = ROOT / "docs" / "errors.md"
# Written by ONNX Runtime, not by us.
FOREIGN = {"Available memory of", "is smaller than requested bytes of"}


def texts_of_the_code() -> str:
    """Return all texts in the sources; an f-string's values are left out."""
    texts = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                texts.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(" ".join(text.split(" ")) for text in texts)


def documented() -> set[str]:
    """Return the pieces of the messages in the first column, cut at "..."."""
    pieces: set[str] = set()
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            for message in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
                pieces |= {piece.strip() for piece in message.split("...")}
    return {piece for piece in pieces if len(piece) > 2}


def test_every_message_is_one_of_the_codes() -> None:
    texts = texts_of_the_code()
    pieces = documented()
    assert len(pieces) > 60
    assert "a message that nobody wrote" not in texts
    assert sorted(piece for piece in pieces - FOREIGN if piece not in texts) == []
