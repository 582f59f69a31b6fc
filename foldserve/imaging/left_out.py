"""Counts the files of a folder that are left out, by reason, in bounded memory."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from foldserve.errors import ImageError
from foldserve.imaging.image_files import IMAGE_SUFFIXES, count_images, is_hidden, is_image_name
from foldserve.text import escaped, join_first

_NO_SUFFIX = "without a suffix"
_OTHER_SUFFIX = "with other suffixes"
# Numbered files (scan.000001) have a suffix each.
_SUFFIXES_HELD = 1000
_NAMES_HELD = 3


@dataclass
class Names:
    """The number of some names, of which the first few in order are held."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count a name."""
        self.count += 1
        self.first = sorted([*self.first, name])[:_NAMES_HELD]

    def listed(self, texts: list[str]) -> str:
        """Return ``texts``, which describe the first names, and how many more there are."""
        rest = self.count - len(texts)
        return ", ".join(texts) + (f" and {rest:,} more" if rest else "")


@dataclass
class LeftOut:
    """Counts the files of ``folder`` that are left out; `lines` describes them."""

    folder: Path
    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: Names = field(default_factory=Names)
    linked: Names = field(default_factory=Names)
    no_files: Names = field(default_factory=Names)
    others: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Count a file or folder that is left out."""
        name = os.path.basename(path)  # noqa: PTH119  # as text: there may be a million
        if is_hidden(name):
            self.hidden.add(path)
        elif os.path.isdir(path):  # noqa: PTH112
            self.linked.add(path)
        elif is_image_name(name):
            self.no_files.add(path)
        else:
            suffix = escaped(os.path.splitext(name)[1].lower()) or _NO_SUFFIX  # noqa: PTH122
            is_held = suffix in self.suffixes or len(self.suffixes) < _SUFFIXES_HELD
            self.suffixes[suffix if is_held else _OTHER_SUFFIX] += 1

    def lines(self) -> list[str]:
        """Return a line per reason, with the number of files and the first names."""
        lines = list(self.others)
        if self.suffixes:
            unnamed = (_NO_SUFFIX, _OTHER_SUFFIX)
            ranked = sorted(self.suffixes.items(), key=lambda each: (-each[1], each[0] in unnamed, each[0]))
            listed = join_first([f"{count:,} {suffix}" for suffix, count in ranked])
            lines.append(f"{listed}; images are read from {', '.join(sorted(IMAGE_SUFFIXES))}")
        if self.linked.count:
            shown = [f"{self._named(path)} with {_count(path):,} images" for path in self.linked.first]
            lines.append(
                f"linked folders ({self.linked.count:,}): {self.linked.listed(shown)}; links inside a class "
                "are not followed: put the images there"
            )
        for what, names in (
            ("hidden names and folders of the system", self.hidden),
            ("names that are not files, such as broken links", self.no_files),
        ):
            if names.count:
                listed = names.listed([self._named(path) for path in names.first])
                lines.append(f"{what} ({names.count:,}): {listed}")
        return lines

    def _named(self, path: str) -> str:
        return escaped(os.path.relpath(path, self.folder))


def _count(folder: str) -> int:
    try:
        return count_images(Path(folder))
    except ImageError:
        return 0
