"""A file is replaced as a whole or not at all, whoever else replaces it."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest

from foldserve.replacing import replacing, write_replacing

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_the_content_is_replaced_and_nothing_is_left(tmp_path: Path, *, durable: bool):
    path = tmp_path / "facts.json"
    write_replacing(path, "é\n", durable=durable)
    write_replacing(path, b"two", durable=durable)
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["facts.json"]


def test_the_old_content_stays_until_the_new_one_is_complete(tmp_path: Path):
    path = tmp_path / "facts.json"
    write_replacing(path, "old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert beside.name.startswith(".")
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_what_fails_changes_nothing(tmp_path: Path, error: BaseException):
    path = tmp_path / "facts.json"
    write_replacing(path, "old")

    def fail() -> None:
        with replacing(path) as beside:
            beside.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["facts.json"]


def test_errors_name_the_file_that_was_to_be_replaced(tmp_path: Path):
    """Not the one beside, whose name says nothing to anybody, nor no file, as that of a full disk."""
    path = tmp_path / "facts.json"
    full = OSError(errno.ENOSPC, "No space left on device")
    elsewhere = FileNotFoundError(errno.ENOENT, "No such file or directory", "elsewhere")
    for raised, named in ((full, str(path)), (elsewhere, "elsewhere")):
        with pytest.raises(OSError, match=raised.strerror) as found, replacing(path):
            raise raised
        assert found.value.filename == named
    with pytest.raises(FileNotFoundError) as missing:
        write_replacing(tmp_path / "no" / "facts.json", "content")
    assert missing.value.filename == str(tmp_path / "no" / "facts.json")


def test_many_writers_leave_the_content_of_one(tmp_path: Path):
    path = tmp_path / "facts.json"
    contents = [str(number) * 5000 for number in range(8)]
    writers = [threading.Thread(target=write_replacing, args=(path, content)) for content in contents * 5]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in contents
    assert names(tmp_path) == ["facts.json"]
