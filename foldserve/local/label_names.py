"""Turns the labels of a source into the model's classes."""

from __future__ import annotations

import difflib
import unicodedata
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.tables.rows import whole_number
from foldserve.text import join_first, legible, quote

if TYPE_CHECKING:
    from collections.abc import Sequence


class LabelIndex:
    """Finds the class of a label: by its name, else, if it is a whole number, by that value or index.

    Names that differ in their Unicode normal form only are the same, as in training.
    """

    def __init__(self, labels: Sequence[str], names_of_numbers: Sequence[str] = ()) -> None:
        """Index the model's ``labels``; ``names_of_numbers`` are the source's names of its numbers."""
        self._labels = labels
        self._by_name = {unicodedata.normalize("NFC", label): index for index, label in enumerate(labels)}
        self._by_number = {
            number: index for index, label in enumerate(labels) if (number := whole_number(label))
        }
        self._names_of_numbers = names_of_numbers

    def find(self, label: str | int | None) -> int:
        """Return the class.

        Raises:
            ImageError: there is no label, or the model has no such class.
        """
        if label is None or label == "":
            raise ImageError("has no label")
        if isinstance(label, int) and self._names_of_numbers:
            if not 0 <= label < len(self._names_of_numbers):
                raise ImageError(
                    f"has the label {label}; the table names {len(self._names_of_numbers)} labels"
                )
            label = self._names_of_numbers[label]
        found = self._by_name.get(unicodedata.normalize("NFC", str(label)))
        number = whole_number(str(label))
        if found is None and number is not None:
            found = self._by_number.get(number, _index(number, len(self._labels)))
        if found is not None:
            return found
        near = difflib.get_close_matches(str(label), self._labels, n=1)
        hint = (
            f"did you mean {quote(near[0])}?"
            if near
            else f"it has {join_first([*map(legible, self._labels)])}"
        )
        raise ImageError(f"has the label {quote(str(label))}, which the model does not have ({hint})")


def _index(number: str, count: int) -> int | None:
    """Return ``number`` if it is the index of one of ``count`` classes."""
    return int(number) if len(number) < 10 and 0 <= int(number) < count else None
