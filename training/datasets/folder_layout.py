"""Determines the layout of a folder of images: which folders are its splits, and which are its classes.

FOLDER/CLASS/*              no split
FOLDER/train/CLASS/*        with test, val or both beside it: val to choose the epoch, test for the result

Splits are recognised by name in any case: train, training; val, valid, validation, dev; test, testing; also
with other words that all of them have (seg_train and seg_test). If a folder has nothing but one folder of
folders, that one is used instead, since archives are often packed so: data/train, seg_train/seg_train.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foldserve.tables.open_table import TABLE_SUFFIXES
from foldserve.tables.splits import ROLES, Role, role_and_words
from foldserve.text import escaped, join_first
from foldserve.training.datasets.picture_files import (
    IMAGE_SUFFIXES,
    LeftOut,
    find_pictures,
    holds_pictures,
    is_picture,
    unwrapped,
    visible_folders,
)
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

# Line breaks and other control characters, which would break files of labels, logs and metrics.
_UNFIT_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})

_Splits = dict[Role, "Path"]


@dataclass(frozen=True)
class Split:
    """The image files of a split, ordered by class, with the class index of each."""

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class FolderLayout:
    """The classes of a folder, its splits (only "training" if there are none), and what is left out."""

    labels: tuple[str, ...]
    splits: dict[Role, Split] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def find_layout(folder: Path) -> FolderLayout:
    """Return the layout of ``folder``.

    Raises:
        DatasetError: the layout is ambiguous, a class has no images, or a name cannot be a label.
    """
    if not folder.is_dir():
        expected = f"a folder of images nor a table of images and labels ({', '.join(TABLE_SUFFIXES)})"
        reason = f"is neither {expected}" if folder.exists() else "does not exist"
        raise DatasetError(f"{escaped(str(folder))} {reason}")
    left_out = LeftOut(folder)
    root = unwrapped(folder)
    splits = _find_splits(root, left_out)
    train_folder = splits["training"]
    classes = {role: _classes_in(place) for role, place in splits.items()}
    labels = tuple(sorted(classes["training"]))
    _check_labels(train_folder, classes["training"])
    for role, found in classes.items():
        _check_same_labels(splits[role], found, train_folder, labels)
    return FolderLayout(
        labels,
        {role: _find_images(splits[role], classes[role], labels, left_out) for role in splits},
        tuple(left_out.lines()),
    )


def _find_splits(root: Path, left_out: LeftOut) -> _Splits:
    """Return the folder of each split; if there are no splits, ``root`` for training."""
    folders = visible_folders(root)
    families: dict[frozenset[str], dict[Role, list[Path]]] = {}
    for path in folders:
        if (told := role_and_words(path.name)) is not None:
            families.setdefault(told[1], {}).setdefault(told[0], []).append(path)
    others = [path for path in folders if role_and_words(path.name) is None]
    trained = {words: family for words, family in families.items() if "training" in family}
    split = [family for family in trained.values() if len(family) > 1]
    if len(split) > 1:
        names = [escaped(path.name) for family in split for paths in family.values() for path in paths]
        raise DatasetError(
            f"{root} has several sets of splits ({join_first(names)}); give the folder of one of them"
        )
    chosen = split[0] if split else next(iter(trained.values()), None) if len(trained) == 1 else None
    if chosen is None:
        return _without_splits(root, folders)
    train_folder = _only(root, chosen["training"], "training")
    if not visible_folders(train_folder):
        if len(chosen) > 1 and not others and holds_pictures(train_folder):
            raise DatasetError(
                f"{train_folder} has images and no folders of classes; expected {train_folder.name}/CLASS/*, "
                "or other names if these folders are the classes"
            )
        return _without_splits(root, folders)
    train_folder = unwrapped(train_folder)
    labels = _classes_in(train_folder).keys()
    splits: _Splits = {"training": train_folder}
    for role in ROLES[1:]:
        if role in chosen:
            place = unwrapped(_only(root, chosen[role], role), labels)
            if visible_folders(place):
                splits[role] = place
    taken = [paths[0] for role, paths in chosen.items() if role in splits]
    if len(splits) == 1 and any(path for path in others if _count(path)):
        return _without_splits(root, folders)  # a class has the name train
    _record_left_out(root, [path for path in folders if path not in taken], left_out)
    return splits


def _without_splits(root: Path, folders: list[Path]) -> _Splits:
    """Return ``root``, whose folders are the classes, as the folder for training.

    Raises:
        DatasetError: there is a split beside the classes, or splits within each class; training would include
            their test images.
    """
    names = {path.name for path in folders}
    for path in folders:
        below = {place.name for place in visible_folders(path)} if role_and_words(path.name) else set()
        if below and below <= names:
            raise DatasetError(
                f"{root} has {escaped(path.name)} beside the classes that are in it too; expected the "
                "others in a folder of their own, such as train"
            )
    inside = [{role_and_words(path.name) for path in visible_folders(folder)} for folder in folders]
    if inside and all(None not in roles and len(roles) > 1 for roles in inside):
        raise DatasetError(
            f"each folder in {root} has splits of its own, as {escaped(folders[0].name)} does; expected "
            "the splits outside and the classes inside: train/CLASS/* and test/CLASS/*"
        )
    return {"training": root}


def _record_left_out(root: Path, folders: list[Path], left_out: LeftOut) -> None:
    for path in folders:
        if count := _count(path):
            why = "no folders of classes in it" if role_and_words(path.name) else "not the name of a split"
            left_out.others.append(f"{escaped(path.name)} with {count:,} images ({why})")
    if count := sum(is_picture(path) for path in root.iterdir()):
        left_out.others.append(f"{count:,} images beside the splits")


def _only(root: Path, paths: list[Path], role: Role) -> Path:
    if len(paths) > 1:
        names = " and ".join(escaped(path.name) for path in paths)
        raise DatasetError(f"{root} has {names}, all for {role} by their names; keep one of them")
    return paths[0]


def _classes_in(folder: Path) -> dict[str, list[Path]]:
    """Return the folders of each class in ``folder``; names equal after normalisation are one class.

    Raises:
        DatasetError: a name cannot be a label.
    """
    classes: dict[str, list[Path]] = {}
    unfit = []
    for path in visible_folders(folder):
        if any(unicodedata.category(character) in _UNFIT_CATEGORIES for character in path.name):
            unfit.append(path.name)
        # macOS writes an accent as a separate character; other systems write one character for both.
        classes.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
    if unfit:
        raise DatasetError(
            f"{folder} has folders whose names cannot be labels: "
            f"{join_first([escaped(name) for name in unfit])}; expected UTF-8 without line breaks or other "
            "control characters: rename them (convmv converts all names in another encoding, such as those "
            "in archives from Windows)"
        )
    return classes


def _check_labels(folder: Path, classes: dict[str, list[Path]]) -> None:
    if len(classes) < 2:
        there = f"only one class, {next(iter(classes))!r}" if classes else "no folders of classes"
        raise DatasetError(
            f"{folder} has {there}; expected a folder of images for each of two classes or more"
        )


def _check_same_labels(
    folder: Path, classes: dict[str, list[Path]], train_folder: Path, labels: tuple[str, ...]
) -> None:
    missing, more = sorted(set(labels) - classes.keys()), sorted(classes.keys() - set(labels))
    if missing or more:
        differences = (("missing", missing), ("unknown", more))
        raise DatasetError(
            f"{folder} does not have the classes of {train_folder}: "
            + "; ".join(f"{word} {join_first(names)}" for word, names in differences if names)
            + "; rename, add or remove folders until both have the same"
        )


def _find_images(
    folder: Path, classes: dict[str, list[Path]], labels: tuple[str, ...], left_out: LeftOut
) -> Split:
    paths: list[Path] = []
    indices: list[int] = []
    empty = []
    for index, label in enumerate(labels):
        before = left_out.suffixes.copy()
        found = [path for place in classes[label] for path in find_pictures(place, left_out)]
        if not found:
            others = [f"{count:,} {suffix}" for suffix, count in (left_out.suffixes - before).most_common(3)]
            empty.append(f"{label} (only {', '.join(others)})" if others else label)
        paths += found
        indices += [index] * len(found)
    if empty:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DatasetError(
            f"{folder} has classes without images: {join_first(empty)}; put images ({suffixes}) there or "
            "remove the folders"
        )
    if count := sum(is_picture(path) for path in folder.iterdir()):
        left_out.others.append(f"{count:,} images beside the classes, in no folder of a class")
    return Split(folder, tuple(paths), tuple(indices))


def _count(folder: Path) -> int:
    return len(find_pictures(folder, LeftOut(folder)))
