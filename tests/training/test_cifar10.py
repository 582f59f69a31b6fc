"""CIFAR-10's binary version and MNIST, from generated files in their formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.training.datasets import cifar10, load_dataset, mnist
from foldserve.training.datasets.cifar10 import CifarArchive
from foldserve.training.datasets.idx import IdxFile
from foldserve.training.errors import DatasetError
from tests.support.idx_files import idx_content
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = 7
FILES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def batch(index: int) -> bytes:
    """Return records of a file: class n for record n, then red, green and blue planes of one value each."""
    records = np.empty((RECORDS, 3073), np.uint8)
    for number, record in enumerate(records):
        record[0] = (number + index) % 10
        record[1:] = np.repeat([10 * index + number, 100, 200], 1024)
    return records.tobytes()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the tar file into a folder as given with --data-dir."""
    path = tmp_path / "given" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for index, name in enumerate(FILES):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(batch(index))
            tar.addfile(info, io.BytesIO(batch(index)))
    expected = CifarArchive(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), records=RECORDS)
    monkeypatch.setattr(cifar10, "SOURCE", replace(cifar10.SOURCE, files={"records": expected}, mirrors=()))
    return path


def assert_is_cifar(folder: Path) -> None:
    dataset = load_dataset("cifar10", folder, terminal=LineTerminal())
    assert dataset.train_images.shape == (35, 3, 32, 32)
    assert dataset.test_images.shape == (7, 3, 32, 32)
    assert dataset.train_labels[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 1]
    assert dataset.test_labels.tolist() == [5, 6, 7, 8, 9, 0, 1]
    assert dataset.train_images[8].flatten(1).unique(dim=1).flatten().tolist() == [11, 100, 200]
    assert dataset.labels[dataset.test_labels[2]] == "horse"
    assert dataset.image.shape == (3, 32, 32)


def test_the_archive_is_read_as_red_green_and_blue_planes(archive: Path):
    assert_is_cifar(archive.parent)


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin"])
def test_unpacked_files_are_read_too(archive: Path, tmp_path: Path, inner: str):
    folder = tmp_path / "unpacked" / inner
    folder.mkdir(parents=True)
    for index, name in enumerate(FILES):
        (folder / name).write_bytes(batch(index))
    assert_is_cifar(tmp_path / "unpacked")
    (folder / FILES[2]).write_bytes(batch(2)[:-1])
    with pytest.raises(
        DatasetError, match=r"data_batch_3\.bin holds 21,510 bytes, expected 21,511: 7 records"
    ):
        load_dataset("cifar10", tmp_path / "unpacked", terminal=LineTerminal())
    (folder / FILES[2]).write_bytes(b"\x0a" + batch(2)[1:])
    with pytest.raises(DatasetError, match=r"is damaged: it has a class 10, expected 0 to 9"):
        load_dataset("cifar10", tmp_path / "unpacked", terminal=LineTerminal())


@pytest.mark.parametrize("fault", ["a flipped bit", "cut short", "missing"])
def test_a_damaged_archive_is_refused(archive: Path, fault: str):
    content = archive.read_bytes()
    match fault:
        case "a flipped bit":
            archive.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
        case "cut short":
            archive.write_bytes(content[:-20])
        case "missing":
            archive.unlink()
    expected = (
        "has no cifar-10-binary" if fault == "missing" else r"is damaged or not cifar-10-binary\.tar\.gz"
    )
    with pytest.raises(DatasetError, match=expected):
        load_dataset("cifar10", archive.parent, terminal=LineTerminal())


def test_mnist_is_read_from_its_files_and_never_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shapes = {
        "train_images": (60, 28, 28),
        "train_labels": (60,),
        "test_images": (20, 28, 28),
        "test_labels": (20,),
    }
    files = {}
    for seed, (part, shape) in enumerate(shapes.items()):
        content, name = idx_content(shape, seed), mnist.SOURCE.files[part].packed_name
        (tmp_path / name).write_bytes(gzip.compress(content))
        files[part] = IdxFile(name.removesuffix(".gz"), shape, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist, "SOURCE", replace(mnist.SOURCE, files=files))
    dataset = load_dataset("mnist", tmp_path, terminal=LineTerminal())
    assert dataset.train_images.shape == (60, 1, 28, 28)
    assert dataset.train_images[0].numpy().tobytes() == idx_content(shapes["train_images"], 0)[16 : 16 + 784]
    assert dataset.labels == tuple("0123456789")
    assert not dataset.flip_keeps_class


def test_cifar10_and_mnist_are_described_as_published():
    assert {part: file.limit_bytes - 65536 for part, file in mnist.SOURCE.files.items()} == {
        "train_images": 47_040_016,
        "train_labels": 60_008,
        "test_images": 7_840_016,
        "test_labels": 10_008,
    }
    archive = cifar10.SOURCE.files["records"]
    assert (archive.packed_name, archive.limit_bytes) == ("cifar-10-binary.tar.gz", 170_052_171)


def test_an_image_size_is_only_for_folders(tmp_path: Path):
    with pytest.raises(DatasetError, match="image-size is for folders of images; mnist has its own"):
        load_dataset("mnist", tmp_path, image_size=32, terminal=LineTerminal())
