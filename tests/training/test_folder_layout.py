"""The layout of a folder: its splits by their usual names, its classes, and the files left out."""

from __future__ import annotations

import os
import shutil
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve.imaging import prepare_image
from foldserve.training.datasets import Dataset, load_dataset, split_train
from foldserve.training.datasets.folder_layout import find_layout
from foldserve.training.errors import DatasetError
from tests.support.image_folders import LABELS, write_classes
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(folder: Path) -> tuple[Dataset, list[str]]:
    terminal = LineTerminal()
    return load_dataset(str(folder), terminal=terminal), terminal.lines


def write_splits(folder: Path, **counts: int) -> Path:
    """Write FOLDER/SPLIT/CLASS/*; two underscores in a name stand for a subfolder."""
    for seed, (name, count) in enumerate(counts.items()):
        write_classes(folder / name.replace("__", "/"), per_class=count, seed=seed)
    return folder


def pixels_in(folder: Path, dataset: Dataset) -> list[bytes]:
    files = sorted(folder.rglob("*.png"))
    return [prepare_image(file.read_bytes(), dataset.image).tobytes() for file in files]


def pixels_of(images) -> list[bytes]:
    return [np.ascontiguousarray(image.numpy()).tobytes() for image in images]


@pytest.mark.parametrize(
    ("train", "judge"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
        ("Train", "validation"),
        ("train", "dev"),
        ("training_set", "test_set"),
        ("trainset", "testset"),
        ("seg_train", "seg_test"),
        ("seg_train__seg_train", "seg_test__seg_test"),
        ("asl-alphabet-train", "asl-alphabet-test"),
        ("data__train", "data__test"),
        ("a__b__Train", "a__b__Test"),
    ],
)
def test_splits_are_recognised_by_their_usual_names(tmp_path: Path, train: str, judge: str):
    folder = write_splits(tmp_path / "p", **{train: 3, judge: 2})
    dataset, lines = load(folder)
    assert dataset.labels == LABELS
    train_folder, judge_folder = (folder / name.replace("__", "/") for name in (train, judge))
    assert pixels_of(dataset.train_images) == pixels_in(train_folder, dataset)
    assert pixels_of(dataset.test_images) == pixels_in(judge_folder, dataset)
    assert dataset.validation is None
    found = f"12 images for training in {train_folder.relative_to(folder)}, 8 images for "
    assert "4 classes (east, north, south, west)" in lines[0]
    assert found in lines[0]
    assert f"in {judge_folder.relative_to(folder)}" in lines[0]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "Valid", "Test")])
def test_of_three_splits_val_is_for_validation_and_test_for_the_test(
    tmp_path: Path, names: tuple[str, str, str]
):
    folder = write_splits(tmp_path / "p", **dict(zip(names, (4, 3, 2), strict=True)))
    dataset, _ = load(folder)
    training, validation = split_train(dataset)
    for images, name in zip((training.images, validation.images, dataset.test_images), names, strict=True):
        assert pixels_of(images) == pixels_in(folder / name, dataset)


def test_a_train_folder_alone_is_split_like_a_folder_without_splits(tmp_path: Path):
    dataset, lines = load(write_splits(tmp_path / "p", train=10))
    assert (len(dataset.train_images), len(dataset.test_images)) == (32, 8)
    assert "a fifth of each class held out for the test" in lines[0]


def test_a_test_folder_without_classes_is_left_out(tmp_path: Path):
    """As in competitions, which keep the labels of the test images secret."""
    folder = write_splits(tmp_path / "p", train=10, val=2)
    (folder / "test").mkdir()
    Image.new("L", (28, 28)).save(folder / "test" / "1.png")
    write_classes(folder / "seg_pred", per_class=2)
    dataset, lines = load(folder)
    assert (len(dataset.train_images), len(dataset.test_images)) == (40, 8)
    assert "left out: test with 1 images (no folders of classes in it)" in lines
    assert "left out: seg_pred with 8 images (not the name of a split)" in lines


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("bus", "car", "train"), id="a train is a vehicle"),
        pytest.param(("bullet_train", "test_tube"), id="words that have nothing in common"),
        pytest.param(("valid", "invalid"), id="no training"),
    ],
)
def test_classes_may_have_the_names_of_splits(tmp_path: Path, names: tuple[str, ...]):
    dataset, _ = load(write_classes(tmp_path / "p", per_class=4, labels=names))
    assert dataset.labels == tuple(sorted(names))


def test_a_class_called_train_may_have_folders(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=4, labels=("bus", "car"))
    write_classes(folder / "train", per_class=2, labels=("steam", "diesel"))
    dataset, _ = load(folder)
    assert dataset.labels == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda p: write_classes(p, per_class=3, labels=("train", "val")),
            r"train has images and no folders of classes; expected train/CLASS/\*, or other names",
            id="splits without classes",
        ),
        pytest.param(
            lambda p: write_splits(p, east__train=3, east__test=2, west__train=3, west__test=2),
            r"each folder in .* has splits of its own, as east does; expected the splits outside",
            id="classes outside, splits inside",
        ),
        pytest.param(
            lambda p: write_classes(write_classes(p, per_class=3) / "test", per_class=2),
            "has test beside the classes that are in it too; expected the others in a folder of their own",
            id="a split beside the classes",
        ),
        pytest.param(
            lambda p: write_splits(p, train=3, val=2, valid=2),
            "has val and valid, all for validation by their names; keep one of them",
            id="two of a kind",
        ),
        pytest.param(
            lambda p: write_splits(p, a_train=3, a_test=2, b_train=3, b_test=2),
            "several sets of splits .* give the folder of one of them",
            id="two data sets",
        ),
        pytest.param(
            lambda p: write_classes(
                write_splits(p, train=3) / "val", per_class=2, labels=(*LABELS[1:], "East")
            ),
            "val does not have the classes of .*train: missing east; unknown East; rename, add or remove",
            id="other classes",
        ),
        pytest.param(
            lambda p: (write_splits(p, train=3, val=2), shutil.rmtree(p / "val" / "east")),
            "val does not have the classes of .*train: missing east; rename",
            id="a class is missing",
        ),
        pytest.param(
            lambda p: write_classes(p, per_class=1),
            "a single image per class, which leaves none for the test; expected at least 2 per class",
            id="one image per class",
        ),
        pytest.param(
            lambda p: [
                file.rename(file.with_suffix(".TIF"))
                for file in (write_classes(p, per_class=3) / "west").iterdir()
            ],
            r"classes without images: west \(only 3 \.tif\); put images \(\.bmp, .*\.webp\) there",
            id="only tif",
        ),
    ],
)
def test_ambiguous_layouts_are_refused_with_a_hint(
    tmp_path: Path, make: Callable[[Path], object], message: str
):
    make(tmp_path / "p")
    with pytest.raises(DatasetError, match=message):
        load(tmp_path / "p")


def count_of(dataset: Dataset) -> int:
    return len(dataset.train_images) + len(dataset.test_images)


def test_files_left_out_are_reported_with_the_reason(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=3)
    north = folder / "north"
    for name in ("1.tif", "2.TIF", "notes.txt", "README"):
        (north / name).write_bytes(b"x")
    write_classes(north / ".ipynb_checkpoints", per_class=2)
    write_classes(north / "@eaDir", per_class=2)
    (north / ".hidden.png").write_bytes(b"x")
    (north / "broken.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(north / "pipe.jpg")
    write_classes(tmp_path / "elsewhere", per_class=5, labels=("more",))
    (north / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (north / "round").symlink_to(folder)
    Image.new("L", (28, 28)).save(folder / "beside.png")
    (folder / "__MACOSX").mkdir()
    dataset, lines = load(folder)
    assert count_of(dataset) == 12
    told = "\n".join(line for line in lines if line.startswith("left out: "))
    for expected in (
        "2 .tif, 1 .txt, 1 without a suffix; images are read from .bmp, ",
        "linked folders (2): north/more with 5 images, north/round with 1 images; links inside a class",
        "hidden names and folders of the system (3): ",
        "names that are not files, such as broken links (2): north/broken.png, north/pipe.jpg",
        "1 images beside the classes, in no folder of a class",
    ):
        assert expected in told


def test_linked_files_classes_and_splits_are_followed(tmp_path: Path):
    store = write_splits(tmp_path / "store", one=4, two=2)
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "train").symlink_to(store / "one")
    (folder / "test").mkdir()
    for label in LABELS:
        (folder / "test" / label).symlink_to(store / "two" / label)
    (store / "two" / "north" / "linked.png").symlink_to(store / "one" / "north" / "000.png")
    dataset, lines = load(folder)
    assert (len(dataset.train_images), len(dataset.test_images)) == (16, 9)
    assert not any("left out" in line for line in lines)


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_classes(tmp_path / "p", per_class=3)
    scan = os.scandir

    def scan_but_not(place):
        if str(place).endswith("north"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", scan_but_not)
    with pytest.raises(
        DatasetError, match="north cannot be listed: Permission denied; change its permissions"
    ):
        find_layout(folder)


@pytest.mark.parametrize("within_one_split", [False, True])
def test_names_equal_after_unicode_normalisation_are_one_class(tmp_path: Path, within_one_split: bool):
    """One name as macOS writes it in a zip file, one as other systems do."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    if within_one_split:
        write_classes(tmp_path / "p", per_class=4, labels=(composed, decomposed, "tea"))
    else:
        write_classes(tmp_path / "p" / "train", per_class=4, labels=(composed, "tea"))
        write_classes(tmp_path / "p" / "val", per_class=4, labels=(decomposed, "tea"))
    dataset, _ = load(tmp_path / "p")
    assert dataset.labels == (composed, "tea")
    counts = dataset.train_labels.bincount() + dataset.test_labels.bincount()
    assert counts.tolist() == ([8, 4] if within_one_split else [8, 8])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xe9", r"caf\\xe9"),
        (b"two\nlines", r"two\\nlines"),
        (b"\x1b[31mred", r"\\x1b\[31mred"),
        ("a\u2028b".encode(), r"a\\u2028b"),
    ],
)
@pytest.mark.parametrize("split", ["", "train/", "val/"])
def test_names_that_cannot_be_labels_are_refused_before_training(
    tmp_path: Path, name: bytes, shown: str, split: str
):
    root = tmp_path / "p"
    if split:
        write_splits(root, train=3, val=2)
    else:
        write_classes(root, per_class=3)
    (root / split / "north").rename(root / split / os.fsdecode(name))
    with pytest.raises(DatasetError, match=rf"names cannot be labels: {shown}; expected UTF-8 .* rename"):
        load(root)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png", b"\xff\xfe.PNG"])
def test_file_names_may_be_any_bytes(tmp_path: Path, name: bytes):
    folder = write_classes(tmp_path / "p", per_class=3)
    picture = (folder / "north" / "000.png").rename(folder / "north" / os.fsdecode(name))
    for _ in range(2):
        dataset, _lines = load(folder)
        assert count_of(dataset) == 12
    picture.write_bytes(b"not an image")
    with pytest.raises(DatasetError, match="1 of 12 images") as caught:
        load(folder)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


def test_a_data_set_whose_own_path_is_not_utf_8_is_refused(tmp_path: Path):
    folder = write_classes(tmp_path / os.fsdecode(b"caf\xe9"), per_class=3)
    with pytest.raises(DatasetError, match=r"caf\\xe9 is not UTF-8, .* rename it"):
        load(folder)
