"""Loading folders of images: classes, sizes, unreadable images, and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from foldserve.imaging import ImageSpec, prepare_image
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import Dataset, load_dataset
from foldserve.training.errors import DatasetError
from tests.support.image_folders import LABELS, write_classes
from tests.training.conftest import LineTerminal, take_home_away

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "foldserve" / "image-folders"


def load(folder: Path, **settings: object) -> tuple[Dataset, list[str]]:
    terminal = LineTerminal()
    return load_dataset(str(folder), terminal=terminal, **settings), terminal.lines


def test_a_folder_without_splits_is_split_repeatably_by_class(tmp_path: Path):
    folder = write_classes(tmp_path / "pictures", per_class=10)
    dataset, _ = load(folder)
    assert dataset.labels == LABELS
    assert dataset.train_labels.bincount().tolist() == [8] * 4
    assert dataset.test_labels.bincount().tolist() == [2] * 4
    again, _ = load(folder)
    assert torch.equal(dataset.test_images, again.test_images)
    every = torch.cat([dataset.train_images, dataset.test_images]).flatten(1)
    assert len(every.unique(dim=0)) == 40


@pytest.mark.parametrize("test_name", ["val", "test"])
def test_train_and_val_keep_their_images_apart(tmp_path: Path, test_name: str):
    write_classes(tmp_path / "p" / "train", per_class=3, seed=1)
    write_classes(tmp_path / "p" / test_name, per_class=2, seed=2)
    dataset, _ = load(tmp_path / "p")
    assert dataset.train_labels.tolist() == sorted([0, 1, 2, 3] * 3)
    assert dataset.test_labels.tolist() == sorted([0, 1, 2, 3] * 2)
    files = sorted((tmp_path / "p" / test_name).rglob("*.png"))
    for image, file in zip(dataset.test_images, files, strict=True):
        assert np.array_equal(image.numpy(), prepare_image(file.read_bytes(), dataset.image))


@pytest.mark.parametrize(
    ("sizes", "mode", "image_size", "shape"),
    [
        pytest.param([(30, 20), (30, 20)], "RGB", None, (3, 20, 30), id="their own if all agree"),
        pytest.param([(30, 20), (20, 30)], "L", None, (1, 32, 32), id="32 if small ones do not"),
        pytest.param([(30, 20), (50, 60)], "L", 16, (1, 16, 16), id="as asked for"),
    ],
)
def test_image_size_and_colours_are_detected(
    tmp_path: Path,
    sizes: list[tuple[int, int]],
    mode: str,
    image_size: int | None,
    shape: tuple[int, int, int],
):
    for size, label in zip(sizes, ("a", "b"), strict=True):
        write_classes(tmp_path / "p", per_class=3, labels=(label,), size=size, mode=mode)
    dataset, lines = load(tmp_path / "p", image_size=image_size)
    assert dataset.image.shape == shape
    assert tuple(dataset.train_images.shape[1:]) == shape
    assert any(f"{shape[1]}x{shape[2]} pixels" in line for line in lines)


def test_a_given_image_spec_is_used(tmp_path: Path):
    """As from a checkpoint, so that export prepares images as training did."""
    spec = ImageSpec("RGB", 12, 14, resize_shorter_side=20)
    dataset, _ = load(write_classes(tmp_path / "p", per_class=3), image=spec)
    assert dataset.image == spec
    assert dataset.test_images.shape[1:] == (3, 12, 14)


@pytest.mark.parametrize("has_home", [True, False])
def test_a_folder_loads_without_a_cache_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_home: bool
):
    (tmp_path / "file").write_text("in the way")
    if has_home:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        take_home_away(monkeypatch)
    dataset, lines = load(write_classes(tmp_path / "p", per_class=5))
    assert len(dataset.train_images) == 16
    reason = "Not a directory" if has_home else "there is no home folder; set XDG_CACHE_HOME"
    assert any("decoded images are not cached" in line and reason in line for line in lines)


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_are_listed_and_skipped_only_if_asked(tmp_path: Path, cached: bool):
    folder = write_classes(tmp_path / "p", per_class=6)
    (folder / "north" / "000.png").write_bytes(b"not an image")
    whole = (folder / "south" / "003.png").read_bytes()
    (folder / "south" / "003.png").write_bytes(whole[: len(whole) // 2])
    if cached:
        load(folder, skip_broken=True)
    with pytest.raises(DatasetError) as caught:
        load(folder)
    for expected in (
        "2 of 24 images",
        "north/000.png: not an image",
        "south/003.png: damaged",
        "--skip-broken",
    ):
        assert expected in str(caught.value)
    dataset, lines = load(folder, skip_broken=True)
    assert any("2 of 24 images" in line and line.endswith("left out") for line in lines)
    assert len(dataset.train_images) + len(dataset.test_images) == 22
    assert (dataset.train_labels.bincount() + dataset.test_labels.bincount()).tolist() == [6, 5, 5, 6]


def test_a_setting_of_an_earlier_run_is_read_under_its_older_name(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"dataset": "p", "skip_unreadable": true}')
    assert TrainConfig.model_validate({"config": tmp_path / "config.json"}).skip_broken
    (tmp_path / "config.json").write_text('{"dataset": "p", "skip_undreadable": true}')
    with pytest.raises(ValueError, match="unknown settings: skip_undreadable"):
        TrainConfig.model_validate({"config": tmp_path / "config.json"})


def corrupt_all(folder: Path) -> None:
    for path in folder.glob("*.png"):
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            lambda p: (p / "zoo").mkdir(), "classes without images: zoo; put images", id="an empty class"
        ),
        pytest.param(
            lambda p: [corrupt_all(p / "west")], "no readable training images of west", id="all corrupt"
        ),
        pytest.param(
            lambda p: [(p / label).rename(p.parent / label) for label in LABELS[1:]],
            "only one class, 'east'; expected a folder of images for each of two classes",
            id="one class",
        ),
        pytest.param(
            lambda p: [(p / label).rename(p.parent / label) for label in LABELS],
            "no folders of classes",
            id="no class",
        ),
    ],
)
def test_folders_that_cannot_be_trained_on_say_why(tmp_path: Path, spoil, message: str):
    folder = write_classes(tmp_path / "p", per_class=3)
    spoil(folder)
    with pytest.raises(DatasetError, match=message):
        load(folder, skip_broken=True)


def test_splits_with_other_classes_are_refused(tmp_path: Path):
    write_classes(tmp_path / "p" / "train", per_class=2)
    write_classes(tmp_path / "p" / "val", per_class=2, labels=(*LABELS[1:], "up"))
    with pytest.raises(
        DatasetError, match=r"val does not have the classes of .*train: missing east; unknown up"
    ):
        load(tmp_path / "p")


def test_a_missing_folder_is_distinguished_from_an_unknown_name(tmp_path: Path):
    with pytest.raises(
        DatasetError, match=r"nowhere does not exist; if it has moved, give its new place with"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(
        DatasetError, match=r"'nowhere' is not known; expected one of cifar10, .* a folder of"
    ):
        load_dataset("nowhere", terminal=LineTerminal())
    dataset = load_dataset("/gone", write_classes(tmp_path / "p", per_class=3), terminal=LineTerminal())
    assert dataset.labels == LABELS


def test_hidden_files_and_files_that_are_not_images_are_ignored(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=3)
    (folder / "north" / "notes.txt").write_text("x")
    (folder / "north" / ".hidden.png").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / "north" / "deeper").mkdir()
    Image.new("L", (28, 28)).save(folder / "north" / "deeper" / "more.JPEG")
    dataset, _ = load(folder)
    assert len(dataset.train_images) + len(dataset.test_images) == 13
