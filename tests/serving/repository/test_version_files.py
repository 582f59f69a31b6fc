"""Tests when a version's files are read, waited for and refused, with a fake clock."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from foldserve.artifact.format import Artifact
from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.repository import model_file_cache
from foldserve.serving.repository.layout import Layout
from foldserve.serving.repository.model_file_cache import ModelFileCache
from foldserve.serving.repository.scanner import scan
from foldserve.serving.repository.version_files import LoadFailure, VersionFiles
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = ModelSettings(device="cpu", intra_op_threads=1)


class Clock:
    """Returns a time that only the test changes."""

    def __init__(self) -> None:
        self.now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """Reads the model ``tiny`` of a repository as a server does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.files = VersionFiles(Layout(folder), settle_s=2.0, clock=self.clock)

    def look(
        self, version: int = 1, *, wait_for_writes: bool = True, **changed: object
    ) -> Artifact | LoadFailure | None:
        signature = scan(self.folder)["tiny"].versions[version]
        settings = SETTINGS.model_copy(update=changed)
        return self.files.read("tiny", version, signature, settings, wait_for_writes=wait_for_writes)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    return Watched(tmp_path / "models")


def test_complete_files_are_read_once(watched: Watched) -> None:
    assert isinstance(watched.look(), Artifact)
    assert watched.look() is None
    watched.files.record_outcome("tiny", 1, "refused")
    assert watched.look() is None
    assert watched.files.last_outcome("tiny", 1) == "refused"


def test_changed_settings_or_files_are_read_again(watched: Watched) -> None:
    watched.look()
    assert isinstance(watched.look(max_batch_size=2), Artifact)
    assert watched.look(max_batch_size=2) is None
    model = watched.folder / "tiny" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes())
    assert isinstance(watched.look(max_batch_size=2), Artifact)


def test_incomplete_version_is_waited_for_while_it_changes(watched: Watched) -> None:
    version = watched.folder / "tiny" / "1"
    whole = (version / "model.onnx").read_bytes()
    for size in (10, 20, 30):
        (version / "model.onnx").write_bytes(whole[:size])
        found = watched.look()
        assert isinstance(found, LoadFailure)
        assert not found.is_permanent
        watched.clock.now_s += 10
        assert watched.files.last_outcome("tiny", 1) is None
    (version / "model.onnx").write_bytes(whole)
    assert isinstance(watched.look(), Artifact)


def test_version_that_stays_incomplete_is_refused_until_it_changes(watched: Watched) -> None:
    version = watched.folder / "tiny" / "1"
    shutil.move(version / "golden.npz", watched.folder / ".golden")
    watched.look()
    watched.clock.now_s += 1.9
    assert watched.look() is None
    watched.clock.now_s += 0.2
    refused = watched.look()
    assert isinstance(refused, LoadFailure)
    assert refused.is_permanent
    assert str(refused.error) == "golden.npz is missing from the version's folder"
    assert watched.look() is None
    shutil.move(watched.folder / ".golden", version / "golden.npz")
    assert isinstance(watched.look(), Artifact)


def test_load_by_name_does_not_wait_for_writes(watched: Watched) -> None:
    (watched.folder / "tiny" / "1" / "manifest.json").unlink()
    refused = watched.look(wait_for_writes=False)
    assert isinstance(refused, LoadFailure)
    assert refused.is_permanent


def test_large_file_being_written_is_not_hashed_at_each_poll(watched: Watched) -> None:
    """Its size shows that it is incomplete; only the complete file is read."""
    model = watched.folder / "tiny" / "1" / "model.onnx"
    size = model.stat().st_size
    model.write_bytes(b"short")
    found = watched.look()
    assert isinstance(found, LoadFailure)
    assert str(found.error) == f"model.onnx has 5 bytes; manifest.json says {size}"


def test_unexpected_faults_name_the_file_that_was_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TinyNetwork().publish(tmp_path / "tiny")
    (tmp_path / "tiny" / "model.toml").write_text("")
    (tmp_path / "tiny" / "promoted.json").write_text("{}")
    for name, file in (("read_promotions", "promoted.json"), ("read_model_settings", "model.toml")):
        monkeypatch.setattr(model_file_cache, name, lambda *_: 1 // 0)
        reader = ModelFileCache(tmp_path, SETTINGS, settle_s=0)
        found = reader.read("tiny", scan(tmp_path)["tiny"], wait_for_writes=False)
        assert str(found).startswith(f"{file} cannot be used: ZeroDivisionError")


def test_settings_being_written_are_waited_for(tmp_path: Path) -> None:
    TinyNetwork().publish(tmp_path / "tiny")
    clock = Clock()
    reader = ModelFileCache(tmp_path, SETTINGS, settle_s=2.0, clock=clock)
    path = tmp_path / "tiny" / "model.toml"

    def look(*, wait_for_writes: bool = True) -> object:
        return reader.read("tiny", scan(tmp_path)["tiny"], wait_for_writes=wait_for_writes)

    assert look() is not None
    path.write_text("max_batch_si")
    assert look() is None
    clock.now_s += 2.1
    assert "not valid TOML" in str(look())
    path.write_text("max_batch_size = 7\n")
    settings = look()
    assert isinstance(settings, tuple)
    assert settings[0].max_batch_size == 7
    path.write_text("max_batch_si")
    assert "not valid TOML" in str(look(wait_for_writes=False))
