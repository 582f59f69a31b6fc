"""The cache of decoded images is used only for the images that it was filled with."""

from __future__ import annotations

import json
import os
import shutil
import struct
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from foldserve import imaging
from foldserve.imaging import ImageSpec, prepare_image
from foldserve.training.datasets import Dataset, decoding, load_dataset
from foldserve.training.errors import DatasetError
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "foldserve" / "image-folders"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record the files that are decoded."""
    contents: list[bytes] = []

    def watch(encoded: bytes, spec: ImageSpec) -> np.ndarray:
        contents.append(encoded)
        return prepare_image(encoded, spec)

    monkeypatch.setattr(decoding, "prepare_image", watch)
    return contents


def load(folder: Path) -> Dataset:
    return load_dataset(str(folder), terminal=LineTerminal())


def write_flat(folder: Path, colours: tuple[int, int]) -> Path:
    """Write bitmaps of the same size and time, which differ only in their pixels."""
    for label, colour in zip("ab", colours, strict=True):
        (folder / label).mkdir(parents=True)
        for index in range(6):
            file = folder / label / f"{index}.bmp"
            Image.new("L", (28, 28), colour + index).save(file)
            os.utime(file, (1, 1))
    return folder


def assert_own_pixels(dataset: Dataset, folder: Path) -> None:
    """Check that each class has the pixels of the files that are in its folder now."""
    images = torch.cat([dataset.train_images, dataset.test_images])
    labels = torch.cat([dataset.train_labels, dataset.test_labels])
    for index, label in enumerate(dataset.labels):
        files = sorted((folder / label).iterdir())
        expected = {prepare_image(file.read_bytes(), dataset.image).tobytes() for file in files}
        assert {image.numpy().tobytes() for image in images[labels == index]} == expected


def exchange_in_place(folder: Path) -> None:
    first, second, aside = folder / "a" / "1.bmp", folder / "b" / "1.bmp", folder / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def exchange_classes(folder: Path) -> None:
    (folder / "a").rename(folder / "aside")
    (folder / "b").rename(folder / "a")
    (folder / "aside").rename(folder / "b")


def overwrite_with_old_time(folder: Path) -> None:
    Image.new("L", (28, 28), 77).save(folder / "a" / "0.bmp")
    os.utime(folder / "a" / "0.bmp", (1, 1))


def put_another_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    write_flat(folder, (50, 150))


def link_elsewhere(folder: Path) -> None:
    """Point the same names to other files."""
    other = write_flat(folder.parent / "other", (50, 150))
    shutil.rmtree(folder / "a")
    (folder / "a").symlink_to(other / "a")


@pytest.mark.parametrize(
    "change",
    [
        exchange_in_place,
        exchange_classes,
        overwrite_with_old_time,
        put_another_in_its_place,
        link_elsewhere,
    ],
)
def test_changed_pixels_with_the_same_names_sizes_and_times_are_noticed(
    tmp_path: Path, change: Callable[[Path], None]
):
    folder = write_flat(tmp_path / "p", (0, 200))
    before = load(folder)
    assert_own_pixels(before, folder)
    change(folder)
    after = load(folder)
    assert_own_pixels(after, folder)
    assert after.fingerprint != before.fingerprint


def test_folders_with_the_same_names_and_sizes_keep_their_own_pixels(tmp_path: Path):
    folders = [
        write_flat(tmp_path / name, colours)
        for name, colours in (("first", (0, 200)), ("second", (100, 150)), ("swapped", (200, 0)))
    ]
    for folder in [*folders, *folders]:
        assert_own_pixels(load(folder), folder)


def test_unchanged_images_are_not_decoded_again(tmp_path: Path, cache: Path, decoded: list[bytes]):
    """Neither the times nor the place of the files matter."""
    folder = write_flat(tmp_path / "p", (0, 200))
    first = load(folder)
    assert len(decoded) == 12
    assert first.train_images.numpy().flags.writeable
    os.utime(folder / "a" / "0.bmp")
    second = load(folder)
    third = load(folder.rename(tmp_path / "moved"))
    assert len(decoded) == 12
    assert torch.equal(first.train_images, second.train_images)
    assert torch.equal(first.train_images, third.train_images)
    assert first.fingerprint == second.fingerprint == third.fingerprint
    assert [path.suffix for path in sorted(cache.iterdir())] == [".json", ".lock", ".npy"]


def test_writing_to_decoded_images_does_not_change_the_cache(tmp_path: Path, decoded: list[bytes]):
    folder = write_flat(tmp_path / "p", (0, 200))
    for _ in range(2):
        dataset = load(folder)
        assert_own_pixels(dataset, folder)
        dataset.train_images.fill_(9)
    assert len(decoded) == 12


def cut_short(cache: Path) -> None:
    file = next(cache.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_pixel(cache: Path) -> None:
    file = next(cache.glob("*.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def zero_all(cache: Path) -> None:
    """As a file that was not synced before a power failure."""
    file = next(cache.glob("*.npy"))
    content = file.read_bytes()
    file.write_bytes(content[:128] + bytes(len(content) - 128))


def exchange_files(cache: Path) -> None:
    first, second = sorted(cache.glob("*.npy"))
    aside = first.rename(cache / "aside")
    second.rename(first)
    aside.rename(second)


def lose_the_list(cache: Path) -> None:
    next(cache.glob("*.json")).unlink()


def garble_the_list(cache: Path) -> None:
    for file in cache.glob("*.json"):
        file.write_text(json.dumps({"unreadable": 3}))


def empty_the_list(cache: Path) -> None:
    for file in cache.glob("*.json"):
        file.write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        flip_a_pixel,
        zero_all,
        exchange_files,
        lose_the_list,
        garble_the_list,
        empty_the_list,
    ],
)
def test_a_damaged_cache_is_written_again(tmp_path: Path, cache: Path, damage: Callable[[Path], None]):
    folders = [write_flat(tmp_path / "p", (0, 200)), write_flat(tmp_path / "q", (50, 150))]
    for folder in folders:
        load(folder)
    damage(cache)
    for folder in folders:
        assert_own_pixels(load(folder), folder)


def test_changed_preparation_code_gives_new_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[bytes]
):
    folder = write_flat(tmp_path / "p", (0, 200))
    load(folder)
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "prepare.py").write_text("# another rule\n")
    monkeypatch.setattr(imaging, "__path__", [str(tmp_path / "changed")])
    load(folder)
    assert len(decoded) == 24


def test_a_file_that_changes_while_the_folder_is_read_is_reported(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_flat(tmp_path / "p", (0, 200))
    inspect = decoding.inspect_images

    def change_meanwhile(paths: Iterator[Path]) -> list[decoding.ImageKind]:
        overwrite_with_old_time(folder)
        return inspect(paths)

    monkeypatch.setattr("foldserve.training.datasets.assemble.inspect_images", change_meanwhile)
    with pytest.raises(DatasetError, match=r"0\.bmp has changed while the images were being read; run again"):
        load(folder)
    assert not list(cache.glob("*.npy"))


def test_a_folder_without_readable_images_is_reported_each_time(tmp_path: Path):
    folder = write_flat(tmp_path / "p", (0, 200))
    for file in folder.rglob("*.bmp"):
        file.write_bytes(b"x" + file.parent.name.encode())
    for _ in range(2):
        with pytest.raises(DatasetError, match="12 of 12 images"):
            load(folder)


def test_an_image_with_wrong_metadata_counts_for_the_size(tmp_path: Path):
    """Its orientation is text; its pixels are intact."""
    text = struct.pack("<HHI4s", 0x0112, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + text + bytes(4)
    Image.new("RGB", (40, 30)).save(tmp_path / "0.png", exif=exif)
    (kind,) = decoding.inspect_images([tmp_path / "0.png"])
    assert (kind.height, kind.width) == (30, 40)
