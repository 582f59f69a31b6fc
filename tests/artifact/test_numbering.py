"""A version's number never means two models: not after it was deleted, nor if an export was cut off."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from foldserve.artifact import writer
from foldserve.artifact.format import Golden
from foldserve.artifact.numbering import LAST_VERSION_FILE, changing, last_version, record_version
from foldserve.artifact.promotion import MAX_VERSION
from foldserve.artifact.versions import list_versions
from foldserve.artifact.writer import publish_artifact
from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "net"


def publish(folder: Path) -> str:
    logits = np.eye(3, dtype=np.float32)
    golden = Golden(np.zeros((3, 1, 4, 4), np.uint8), logits, logits, 1e-4, 1e-5, synthetic=False)
    return publish_artifact(folder, model=b"m", golden=golden, manifest={}).name


def test_numbers_of_deleted_versions_are_not_given_again(folder: Path) -> None:
    assert [publish(folder) for _ in range(3)] == ["1", "2", "3"]
    for version in ("3", "2", "1"):
        shutil.rmtree(folder / version)
    assert publish(folder) == "4"
    assert list_versions(folder) == [4]


def test_a_folder_without_the_file_goes_on_from_its_versions(folder: Path) -> None:
    """As one that was copied without it, or written by an earlier release."""
    publish(folder)
    (folder / "1").rename(folder / "5")
    (folder / LAST_VERSION_FILE).unlink()
    assert last_version(folder) == 5
    assert publish(folder) == "6"


def test_a_version_that_was_copied_in_counts(folder: Path) -> None:
    publish(folder)
    shutil.copytree(folder / "1", folder / "9")
    assert publish(folder) == "10"


def test_an_export_that_is_ended_between_number_and_version_leaves_a_gap(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "rename", ended)
        with pytest.raises(KeyboardInterrupt):
            publish(folder)
    assert publish(folder) == "3"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3", LAST_VERSION_FILE]


def test_exporters_at_once_record_the_highest_number(folder: Path) -> None:
    barrier = threading.Barrier(6)
    names: list[str] = []

    def publish_and_delete() -> None:
        barrier.wait()
        for _ in range(3):
            name = publish(folder)
            names.append(name)
            shutil.rmtree(folder / name)

    threads = [threading.Thread(target=publish_and_delete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, names)) == list(range(1, 19))
    assert json.loads((folder / LAST_VERSION_FILE).read_text()) == {"schema_version": 1, "last_version": 18}


@pytest.mark.parametrize(
    "content",
    ["", "{", "3", '{"schema_version": 1}', '{"schema_version": 1, "last_version": 0}'],
)
def test_a_malformed_file_is_said_and_nothing_is_published(folder: Path, content: str) -> None:
    publish(folder)
    (folder / LAST_VERSION_FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"last_version\.json is malformed: .*write .*or remove the file"):
        publish(folder)
    assert list_versions(folder) == [1]
    assert not list(folder.glob(".publishing-*"))


def test_the_highest_number_is_the_last(folder: Path) -> None:
    folder.mkdir()
    record_version(folder, MAX_VERSION)
    with pytest.raises(ArtifactError, match="no number left"):
        publish(folder)


def test_a_server_of_another_user_can_read_the_file(folder: Path) -> None:
    publish(folder)
    before = os.umask(0o022)
    try:
        record_version(folder, 7)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / LAST_VERSION_FILE).stat().st_mode) == 0o644


def _flock_that_refuses(number: int, *, folders_only: bool) -> Any:
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if not folders_only or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor, operation)

    return flock


def test_folders_that_cannot_be_locked_are_locked_by_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a lock needs a file that is open for writing."""
    folder.mkdir()
    monkeypatch.setattr(fcntl, "flock", _flock_that_refuses(errno.EBADF, folders_only=True))
    with changing(folder), (folder / ".lock").open("r+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert publish(folder) == "1"


def test_file_systems_without_locks_get_versions_nevertheless(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _flock_that_refuses(errno.ENOLCK, folders_only=False))
    assert [publish(folder) for _ in range(2)] == ["1", "2"]
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)), changing(folder):
        pass
    monkeypatch.setattr(writer, "record_version", lambda *_: None)  # another one writes the version first
    shutil.copytree(folder / "2", folder / "3")
    monkeypatch.setattr(writer, "last_version", lambda _: 2)
    assert publish(folder) == "4"
