"""Reads the images of a source one by one: a folder, an image, or tables of files and labels.

Nothing but the entry at hand is held, so that a source may have millions of entries.
"""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.imaging.image_files import (
    IMAGE_SUFFIXES,
    count_images,
    unwrapped,
    visible_folders,
    walk_images,
)
from foldserve.imaging.left_out import LeftOut
from foldserve.local.split_choice import ALL, choose_split, split_key
from foldserve.tables.errors import DataError
from foldserve.tables.items import Item
from foldserve.tables.open_table import TABLE_SUFFIXES, count_splits, open_table
from foldserve.tables.splits import ROLE_WORDS, role_of
from foldserve.tables.table_files import find_tables, named_tables
from foldserve.text import escaped, join_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from foldserve.local.split_choice import SplitChoice

# Where the folders of classes lie, seen from the folder that holds them.
_TOP = frozenset({""})


@dataclass(frozen=True)
class Source:
    """The images of a source, to be read once.

    Attributes:
        items: the images, in the source's order.
        label_names: the names of labels that are given as numbers; () if the source has none.
        place: the folder or file that is read, for messages.
        split: which split of them it is, for messages; "" if there are none.
        left_out: what of a folder is no image; complete when the images are read.
    """

    items: Iterator[Item] = field(repr=False)
    label_names: tuple[str, ...] = ()
    place: Path = Path()
    split: str = ""
    left_out: LeftOut = field(default_factory=lambda: LeftOut(Path()))


def print_left_out(source: Source) -> None:
    """Print a line to standard error for each kind of files that ``source``, which is read, has left out."""
    for line in source.left_out.lines():
        print(f"left out: {line}", file=sys.stderr)


def open_source(path: Path, path_column: str | None = None) -> Source:
    """Return the images of ``path``, without labels where it is a folder.

    Raises:
        DataError: it does not exist, is of another kind, or holds no images.
    """
    tables = find_tables(path)
    if path.is_dir() and not (tables and next(_walk(path, LeftOut(path)), None) is None):
        left_out = LeftOut(path)
        return Source(_at_least_one(_walk(path, left_out), path, left_out), place=path, left_out=left_out)
    if tables:
        return _tables(tables, path, path_column, label_column=None, labelled=False)
    _check_image(path)
    return Source(iter([Item(path.name, path)]), place=path)


def open_labelled(
    path: Path,
    labels: Sequence[str],
    path_column: str | None = None,
    label_column: str | None = None,
    *,
    split: str | None = None,
) -> Source:
    """Return the images of ``path`` with their labels: FOLDER/LABEL/*, or a table.

    If they have splits, ``split`` names the one to read, or "all"; by default the test images, else the
    validation images.

    Raises:
        DataError: as `open_source`, or there are no labels, or no such split.
    """
    known = frozenset(unicodedata.normalize("NFC", label) for label in labels)
    tables = find_tables(path)
    if path.is_dir() and (not tables or known & _folders_by_name(path).keys()):
        return _folder(path, known, split)
    if tables:
        return _tables(tables, path, path_column, label_column, labelled=True, split=split)
    _check_image(path)
    raise DataError(f"{path} is an image without a label; expected FOLDER/LABEL/*, or a table with labels")


def _check_image(path: Path) -> None:
    """Check that ``path``, which is no folder and no table, is an image.

    Raises:
        DataError: it is not.
    """
    if missing := [escaped(str(part)) for part in named_tables(path) if not part.is_file()]:
        raise DataError(f"{join_first(missing)} does not exist; expected each of the tables")
    if not path.exists():
        raise DataError(f"{escaped(str(path))} does not exist")
    if not path.is_file():
        raise DataError(f"{escaped(str(path))} is neither a file nor a folder")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(
            f"{escaped(str(path))} is of an unknown kind; expected a folder of images, an image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}), or a table: {', '.join(TABLE_SUFFIXES)}"
        )


def _tables(
    paths: Sequence[Path],
    place: Path,
    path_column: str | None,
    label_column: str | None,
    *,
    labelled: bool,
    split: str | None = ALL,
) -> Source:
    # Several files are of the splits that their names say, as in training, where their rows say nothing.
    by_name = [(role_of(path.stem) or "") if len(paths) > 1 else "" for path in paths]
    counted: list[Mapping[str, int | None]] = []
    if split is None or split_key(split) != ALL:
        counted = [count_splits(path) or {"": None} for path in paths]
    choice = choose_split(_total(counted, by_name), split, place)
    if choice is not None and choice.key != ALL:
        is_read = [
            any(choice.has(word or told) for word in counts)
            for counts, told in zip(counted, by_name, strict=True)
        ]
        paths, by_name = list(compress(paths, is_read)), list(compress(by_name, is_read))
    _refuse_copies(paths)
    tables = [open_table(path, path_column, label_column, labelled=labelled) for path in paths]
    names = {table.label_names for table in tables}
    if len(names) > 1:
        raise DataError(f"{place} has tables with different names of labels; give one file")
    items = chain.from_iterable(
        table.items if choice is None or choice.key == ALL else _of_split(table.items, choice, told)
        for table, told in zip(tables, by_name, strict=True)
    )
    return Source(_at_least_one(items, place), names.pop(), place, choice.described if choice else "")


def _refuse_copies(paths: Sequence[Path]) -> None:
    """Check that no table is there twice, whose images would count twice.

    Raises:
        DataError: one is there as CSV and as Parquet, for example.
    """
    (named, count), *_ = Counter(path.with_suffix("") for path in paths).most_common(1)
    if count > 1:
        raise DataError(
            f"{escaped(str(named))} is there as {count} tables of different kinds; give or keep one of them"
        )


def _total(counted: Sequence[Mapping[str, int | None]], by_name: Sequence[str]) -> dict[str, int | None]:
    """Return the number of rows of each split in all tables, None if it is not known."""
    total: dict[str, int | None] = {}
    for counts, told in zip(counted, by_name, strict=False):
        for word, count in counts.items():
            before = total.get(word or told, 0)
            total[word or told] = None if before is None or count is None else before + count
    return total


def _of_split(items: Iterator[Item], choice: SplitChoice, told: str) -> Iterator[Item]:
    """Yield the items of one split, and the wrong ones of which nobody knows the split."""
    for item in items:
        name = item.split or told
        if choice.has(name) or (item.error and not name):
            yield item


def _folder(folder: Path, known: frozenset[str], split: str | None) -> Source:
    """Return the images of FOLDER/LABEL/*, or of the split asked for in FOLDER/SPLIT/LABEL/*."""
    left_out = LeftOut(folder)
    root = unwrapped(folder, known)
    found = _split_folders(root, known)
    if found:
        _record_others(root, found, left_out)
    else:  # perhaps the only folder of a folder is a split
        passed = reversed(root.relative_to(folder).parts)
        names = [
            name if name.casefold() in ROLE_WORDS else role for name in passed if (role := role_of(name))
        ]
        found = dict.fromkeys(names[:1], root)
    splits = {name: unwrapped(place, known) for name, place in found.items()}
    choice = choose_split(dict.fromkeys(splits), split, folder)
    place, described = root, ""
    if choice is None or not splits:
        items = _walk_labelled(root, left_out)
    elif choice.key == ALL:
        described = choice.described
        items = chain.from_iterable(
            _walk_labelled(each, left_out, f"{name}/") for name, each in splits.items()
        )
    else:
        described = choice.described
        place = next(each for name, each in splits.items() if choice.has(name))
        items = _walk_labelled(place, left_out)
    return Source(_at_least_one(items, place, left_out), place=place, split=described, left_out=left_out)


def _record_others(root: Path, splits: Mapping[str, Path], left_out: LeftOut) -> None:
    """Count what lies in ``root`` beside the ``splits`` as left out."""
    for path in visible_folders(root):
        if path not in splits.values():
            left_out.others.append(f"{escaped(path.name)} (not the name of a split)")
    if count := count_images(root):
        left_out.others.append(f"{count:,} images beside the splits")


def _walk(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    place = f"{folder}/"  # joined as text: a Path costs as much as reading a small image
    links_in = _places_of_links(folder)
    for name in walk_images(folder, links_in=links_in, left_out=left_out, with_broken_links=True):
        yield Item(name, place + name)


def _places_of_links(folder: Path) -> set[str]:
    """Return the folders in which links are followed, as in training: those of splits and of classes.

    Raises:
        ImageError: a folder cannot be listed.
    """
    root = unwrapped(folder)
    splits = [unwrapped(path) for path in visible_folders(root) if role_of(path.name)]
    inside = [place.relative_to(folder) for place in (root, *splits)]
    return {"" if each == Path() else str(each) for place in inside for each in (place, *place.parents)}


def _walk_labelled(folder: Path, left_out: LeftOut, before: str = "") -> Iterator[Item]:
    """Yield the images below ``folder``, each with the first part of its path as its label.

    ``before`` is put before the names of the images.
    """
    place = f"{folder}/"
    for name in walk_images(folder, links_in=_TOP, left_out=left_out):
        label, slash, _ = name.partition("/")
        if slash:
            yield Item(before + name, place + name, label)
        else:
            wrong = f"lies in no folder of a label (expected {folder}/LABEL/*)"
            yield Item(before + name, place + name, error=wrong)


def _at_least_one(items: Iterator[Item], place: Path, left_out: LeftOut | None = None) -> Iterator[Item]:
    first = next(items, None)
    if first is None:
        hint = f" ({', '.join(sorted(IMAGE_SUFFIXES))})" if place.is_dir() else ""
        others = f"; left out: {'; '.join(lines)}" if left_out and (lines := left_out.lines()) else ""
        raise DataError(f"{escaped(str(place))} holds no images{hint}{others}")
    return chain([first], items)


def _folders_by_name(folder: Path) -> dict[str, Path]:
    return {unicodedata.normalize("NFC", path.name): path for path in visible_folders(folder)}


def _split_folders(folder: Path, known: frozenset[str]) -> dict[str, Path]:
    """Return the folders of splits in ``folder`` by their names, exact names first; none if it holds classes.

    Raises:
        DataError: it has no folders, or two for one split.
    """
    found = _folders_by_name(folder)
    if not found:
        raise DataError(
            f"{escaped(str(folder))} has no folders of labels; expected {escaped(folder.name)}/LABEL/*, with "
            f"the labels {join_first([escaped(label) for label in sorted(known)])}"
        )
    if known & found.keys():
        return {}
    words = list(ROLE_WORDS)
    exact = {name: path for name, path in found.items() if name.casefold() in ROLE_WORDS}
    exact = dict(sorted(exact.items(), key=lambda each: words.index(each[0].casefold())))
    if exact:
        return exact
    # As training does: seg_train beside seg_test.
    told: dict[str, Path] = {}
    for path in found.values():
        role = role_of(path.name)
        if role is None:
            continue
        if role in told:
            both = " and ".join(escaped(each.name) for each in (told[role], path))
            raise DataError(
                f"{escaped(str(folder))} has {both}, both for {role} by their names; give one of them"
            )
        told[role] = path
    return told
