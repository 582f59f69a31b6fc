"""Chooses which split of labelled images is judged: that asked for, else test, else validation, else all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.tables.errors import DataError
from foldserve.tables.splits import ROLE_WORDS
from foldserve.text import escaped, join_first, quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ALL = "all"
# Test images judge best: nothing was chosen by them.
_HELD_OUT = ("test", "validation")
_NAME_CHARACTERS = 40


def split_key(name: str) -> str:
    """Return what names of one split have in common: val and validation are the same, Holdout and holdout."""
    folded = name.strip().casefold()
    return ROLE_WORDS.get(folded, folded)


@dataclass(frozen=True)
class SplitChoice:
    """The split to judge.

    Attributes:
        key: its key, or `ALL`.
        described: which it is and what is left out, for a message.
    """

    key: str
    described: str

    def has(self, name: str) -> bool:
        """Tell whether the split ``name``, "" for none, is judged."""
        return self.key == ALL or split_key(name) == self.key


def choose_split(counts: Mapping[str, int | None], asked: str | None, place: Path) -> SplitChoice | None:
    """Return which split of the images at ``place`` is judged; None if it has no splits.

    ``counts`` has the number of rows of each split, None if it is not known, by its name as written; ""
    stands for rows without one. It is not looked at if all are asked for.

    Raises:
        DataError: there is no split of the name asked for.
    """
    if asked is not None and split_key(asked) == ALL:
        return SplitChoice(ALL, "all")
    names: dict[str, str] = {}
    by_key: dict[str, int | None] = {}
    for name, count in counts.items():
        key = split_key(name)
        names.setdefault(key, escaped(name[:_NAME_CHARACTERS]) or "none")
        by_key[key] = None if count is None else count + (by_key.get(key) or 0)
    has_splits = bool(names.keys() - {""})
    listed = {
        key: names[key] if count is None else f"{names[key]} {count:,}" for key, count in by_key.items()
    }
    if asked is None:
        if not has_splits:
            return None
        key = next((key for key in _HELD_OUT if key in names), "")
        if not key:
            return SplitChoice(ALL, f"all, as none is test or val: {join_first(list(listed.values()))}")
    elif not has_splits:
        raise DataError(f"{place} has no split {quote(asked)}: it has no splits; leave out --split")
    else:
        key = split_key(asked)
        if not key or key not in names:
            there = join_first(list(listed.values()))
            raise DataError(f"{place} has no split {quote(asked)}: it has {there}; give one of them, or all")
    rest = [text for each, text in listed.items() if each != key]
    return SplitChoice(key, listed[key] + (f" (left out: {join_first(rest)})" if rest else ""))
