"""Knows the names of splits: train, val, test and the other usual words, in any case.

Folders and files are recognised by one such word among others: seg_test, test-00000-of-00001.
"""

from __future__ import annotations

import re
from typing import Literal

Role = Literal["training", "validation", "test"]
ROLES: tuple[Role, ...] = ("training", "validation", "test")

ROLE_WORDS: dict[str, Role] = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_ROLE_WORD = re.compile(rf"({'|'.join(ROLE_WORDS)})(set|data|images)?")
# Words that do not describe what the images show.
_FILLERS = frozenset(
    {"set", "data", "dataset", "image", "images", "img", "imgs", "pictures", "split", "folder"}
)


def role_of(name: str) -> Role | None:
    """Return the split that the name of a folder or table stands for; None if for no split."""
    told = role_and_words(name)
    return told and told[0]


def role_and_words(name: str) -> tuple[Role, frozenset[str]] | None:
    """Return the split that a folder's name stands for, and its other words; None if for no split."""
    words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+", name)]
    found = [match for word in words if (match := _ROLE_WORD.fullmatch(word))]
    if len(found) != 1:
        return None
    return ROLE_WORDS[found[0][1]], frozenset(words) - {found[0][0]} - _FILLERS
