"""Tests versions and models of any content: each is refused with its reason, and the others serve."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from foldserve.errors import ArtifactError
from foldserve.files import read_regular_file, size_inside
from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.model import loader as loading
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.repository import model_file_cache as settings_reader
from foldserve.serving.repository import reconciler, version_files
from foldserve.serving.repository import scanner as scanning
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.server_state import Lifecycle
from foldserve.serving.services.management import ManagementService
from foldserve.text import is_legible, legible
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import run_cli
from tests.support.strange_versions import KINDS, SETTINGS_DAMAGES, VERSIONS, put_in_place

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = ModelSettings(device="cpu", intra_op_threads=1, max_batch_size=2)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyNetwork().publish(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture
def models(tmp_path: Path, sound: Path) -> Path:
    """Return a folder of three models; the test damages the middle one."""
    for name in ("a", "m", "z"):
        shutil.copytree(sound, tmp_path / "models" / name / "1")
    return tmp_path / "models"


@pytest.fixture
def repository(models: Path) -> Iterator[ModelRepository]:
    """Return a repository that has not loaded its models yet."""
    opened = ModelRepository(models, SETTINGS, settle_s=0.0)
    yield opened
    opened.close(grace_s=5)


def serving(repository: ModelRepository) -> set[str]:
    return {f"{model.name}/{model.version}" for model in repository.index.ready_models()}


def refused(repository: ModelRepository, name: str = "m") -> str:
    """Check that all models but ``name`` serve, and return the reason why that one does not."""
    assert serving(repository) == {"a/1", "z/1"}
    (entry,) = (entry for entry in repository.index.entries() if entry.name == name)
    assert entry.state == "UNAVAILABLE"
    assert entry.reason
    assert is_legible(entry.reason)
    assert len(entry.reason.encode()) < 8000, "it fits into a status's message"
    return entry.reason


@pytest.mark.parametrize("name", VERSIONS)
def test_strange_version_is_refused_and_others_serve(
    repository: ModelRepository, models: Path, name: str
) -> None:
    damage, reasons = VERSIONS[name]
    damage(models / "m" / "1")
    repository.load_all()
    reason = refused(repository)
    assert any(words in reason for words in reasons), reason


@pytest.mark.parametrize("name", VERSIONS)
def test_strange_version_does_not_stop_later_polls_of_others(
    repository: ModelRepository, models: Path, sound: Path, name: str
) -> None:
    repository.load_all()
    assert serving(repository) == {"a/1", "m/1", "z/1"}
    shutil.copytree(sound, models / "m" / "2")
    VERSIONS[name][0](models / "m" / "2")
    shutil.copytree(sound, models / "n" / "1")
    shutil.rmtree(models / "z")
    for _ in range(3):  # as many as what is not whole, or is missing, is given
        repository.refresh()
    assert serving(repository) == {"a/1", "m/1", "n/1"}
    (entry,) = (entry for entry in repository.index.entries() if (entry.name, entry.version) == ("m", 2))
    assert entry.state == "UNAVAILABLE"
    assert any(words in entry.reason for words in VERSIONS[name][1]), entry.reason
    with pytest.raises(UnavailableError):
        repository.load("m")


@pytest.mark.parametrize("name", SETTINGS_DAMAGES)
def test_strange_settings_are_refused_and_others_serve(
    repository: ModelRepository, models: Path, name: str
) -> None:
    SETTINGS_DAMAGES[name](models / "m")
    repository.load_all()
    assert refused(repository).startswith("model.toml ")
    with pytest.raises(UnavailableError, match=r"model\.toml"):
        repository.load("m")
    path = models / "m" / "model.toml"
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    repository.refresh()
    assert serving(repository) == {"a/1", "m/1", "z/1"}


@pytest.mark.parametrize("name", SETTINGS_DAMAGES)
def test_strange_settings_leave_loaded_versions_serving(
    repository: ModelRepository, models: Path, name: str
) -> None:
    repository.load_all()
    SETTINGS_DAMAGES[name](models / "m")
    shutil.rmtree(models / "z")
    for _ in range(3):
        repository.refresh()
    assert serving(repository) == {"a/1", "m/1"}
    shutil.rmtree(models / "m")
    for _ in range(3):
        repository.refresh()
    assert serving(repository) == {"a/1"}


def test_removed_version_is_unloaded_even_with_strange_settings(
    repository: ModelRepository, models: Path, sound: Path
) -> None:
    shutil.copytree(sound, models / "m" / "2")
    repository.load_all()
    (models / "m" / "model.toml").write_text("nonsense")
    shutil.rmtree(models / "m" / "2")
    for _ in range(3):
        repository.refresh()
    assert serving(repository) == {"a/1", "m/1", "z/1"}


@pytest.mark.parametrize("kind", KINDS)
def test_path_that_is_not_a_file_leaves_no_descriptor_open(tmp_path: Path, kind: str) -> None:
    put_in_place(tmp_path / "manifest.json", kind)
    before = set(Path("/proc/self/fd").iterdir())
    for reader in (partial(read_regular_file, most_bytes=100), size_inside):
        for _ in range(20):
            with pytest.raises(ArtifactError):
                reader(tmp_path / "manifest.json", tmp_path)
    assert len(set(Path("/proc/self/fd").iterdir()) - before) < 5


def test_messages_reveal_nothing_about_files_outside(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("secret")
    for target, name in (("secret", "one"), ("no-secret", "other")):
        (tmp_path / "inside" / name).symlink_to(tmp_path / target)
    said = set()
    for name in ("one", "other"):
        for reader in (partial(read_regular_file, most_bytes=100), size_inside):
            with pytest.raises(ArtifactError) as caught:
                reader(tmp_path / "inside" / name, tmp_path / "inside")
            said.add(str(caught.value).removeprefix(name))
    assert len(said) == 1, "whether there is such a file, and of what size, is not told"


ERRORS = [
    RecursionError("too deep"),
    MemoryError(),
    ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    OSError(5, "Input/output error"),
    OverflowError("cannot convert float infinity to integer"),
    RuntimeError("can't start new thread\x1b[2J \udcff" + "x" * 10_000),
]
PLACES = [
    pytest.param(version_files, "read_artifact", id="reading"),
    pytest.param(settings_reader, "read_model_settings", id="settings"),
    pytest.param(loading, "open_artifact", id="opening"),
    pytest.param(loading, "ServedModel", id="starting"),
    pytest.param(reconciler, "settings_or_fault", id="following"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("owner", "attribute"), PLACES)
def test_unexpected_error_affects_only_its_model(
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    attribute: str,
    error: Exception,
) -> None:
    whole = getattr(owner, attribute)

    def fail_for_one(*given: object, **named: object) -> object:
        if any("m" in (given_one, getattr(given_one, "name", "")) for given_one in given) or any(
            isinstance(getattr(one, "folder", one), Path) and "m" in getattr(one, "folder", one).parts  # type: ignore[attr-defined]
            for one in given
        ):
            raise error
        return whole(*given, **named)

    monkeypatch.setattr(owner, attribute, fail_for_one)
    repository.load_all()
    refused(repository)
    repository.refresh()
    refused(repository)
    with pytest.raises(UnavailableError):
        repository.load("m")
    monkeypatch.setattr(owner, attribute, whole)
    repository.load("m")
    assert serving(repository) == {"a/1", "m/1", "z/1"}


def test_unreadable_folder_affects_only_its_model(
    repository: ModelRepository, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every folder, so the error is simulated."""
    repository.load_all()
    (models / "forbidden").mkdir()

    def scandir(path: str | Path) -> object:
        if Path(path).name in {"m", "forbidden"}:
            raise PermissionError(13, "Permission denied")
        return os.scandir(path)

    monkeypatch.setattr(scanning, "os", SimpleNamespace(scandir=scandir, stat=os.stat, lstat=os.lstat))
    found = scanning.scan(models)
    assert found["m"].fault == found["forbidden"].fault == "its folder cannot be read: Permission denied"
    shutil.rmtree(models / "z")
    for _ in range(3):
        repository.refresh()
    assert serving(repository) == {"a/1", "m/1"}, "nothing is known of what cannot be read, so it goes on"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_paths_that_are_not_folders_are_ignored(
    repository: ModelRepository, models: Path, sound: Path, kind: str
) -> None:
    for place in (models, models / "m"):
        for name in ("2", "n", ".n"):
            put_in_place(place / name, kind)
    repository.load_all()
    shutil.copytree(sound, models / "y" / "1")
    repository.refresh()
    assert serving(repository) == {"a/1", "m/1", "y/1", "z/1"}
    assert all(entry.state == "READY" or entry.reason for entry in repository.index.entries())


NAMES = [b"caf\xe9", b"\xff", b"a\x1b[2J", b"a\nb", "a\u2028b".encode(), "a\u202eb".encode(), b"a\x7f"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_illegible_name_is_refused_escaped(
    repository: ModelRepository, models: Path, sound: Path, name: bytes
) -> None:
    folder = models / os.fsdecode(name)
    shutil.copytree(sound, folder / "1")
    shutil.rmtree(models / "m")
    escaped = legible(folder.name)
    repository.load_all()
    repository.refresh()
    repository.refresh()
    assert "rename the folder" in refused(repository, escaped)
    control = ManagementService(repository, Lifecycle(), model_control=True)
    answer = control.repository_index(pb.RepositoryIndexRequest())
    assert {model.name for model in answer.models} == {"a", escaped, "z"}
    assert escaped in control.health()
    with pytest.raises(NotFoundError, match="rename the folder"):
        repository.load(escaped)
    folder.rename(models / "m")
    repository.refresh()
    repository.refresh()
    assert serving(repository) == {"a/1", "m/1", "z/1"}
    assert {entry.name for entry in repository.index.entries()} == {"a", "m", "z"}


def test_legible_name_wins_over_an_escaped_one_that_reads_the_same(models: Path, sound: Path) -> None:
    for name in (b"caf\xe9", rb"caf\xe9", b"zoo\xe9", rb"zoo\xe9"):
        shutil.copytree(sound, models / os.fsdecode(name) / "1")
    found = scanning.scan(models)
    assert [found[name].fault for name in (r"caf\xe9", r"zoo\xe9")] == ["", ""]


@pytest.fixture(scope="module")
def strange_repository(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> Path:
    """Return a folder with every strange version as a model of its own, and two valid models."""
    folder = tmp_path_factory.mktemp("strange") / "models"
    for name in ("aa-sound", *VERSIONS, "zz-sound"):
        shutil.copytree(sound, folder / name / "1")
    for name, (damage, _) in VERSIONS.items():
        damage(folder / name / "1")
    shutil.copytree(sound, folder / os.fsdecode(b"caf\xe9") / "1")
    return folder


@pytest.mark.parametrize(
    ("command", "sound_state", "broken_state"), [("list", "complete", "BROKEN"), ("verify", "ok", "FAILED")]
)
def test_commands_list_models_beside_strange_versions(
    strange_repository: Path, command: str, sound_state: str, broken_state: str
) -> None:
    device = ["--device", "cpu"] if command == "verify" else []
    ended = run_cli("models", command, "--repository", str(strange_repository), *device)
    assert ended.stderr == ""
    assert all(is_legible(line) for line in ended.stdout.split("\n"))
    lines = {line.split()[0]: line for line in ended.stdout.splitlines()}
    for name in ("aa-sound", "zz-sound"):
        assert lines[name].split()[2] == sound_state
    if command == "verify":
        assert all(broken_state in lines[name] for name in VERSIONS)
        assert ended.returncode == 1
    assert broken_state in lines["caf\\xe9"]
    assert "rename the folder" in lines["caf\\xe9"]
