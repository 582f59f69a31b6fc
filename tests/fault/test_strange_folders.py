"""A repository full of strange folders: the server starts, serves the valid ones, follows changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.text import is_legible
from tests.support.artifacts import TinyNetwork
from tests.support.repository_changes import eventually, overwrite, serves, states
from tests.support.scrape import get, scrape
from tests.support.server_process import ServerProcess, outputs_of, status_of
from tests.support.strange_versions import SETTINGS_DAMAGES, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD, NEW = TinyNetwork(seed=1), TinyNetwork(seed=2)
IMAGES = OLD.random_images(3)
# A third of them each: tests/serving/repository/test_strange_files.py has them all.
STRANGE = {"early": dict(list(VERSIONS.items())[::3]), "late": dict(list(VERSIONS.items())[1::3])}
SOUND = ("aa-sound", "zz-sound")
ILLEGIBLE = {os.fsdecode(b"caf\xe9"): "caf\\xe9", "turned\u202e": "turned\\u202e", "a\nb": "a\\x0ab"}


def put_strange(repository: Path, sound: Path, prefix: str) -> None:
    """Put strange models into the repository, whole at once."""
    staging = repository.parent / "staging"
    for name, (damage, _) in STRANGE[prefix].items():
        shutil.copytree(sound, staging / f"{prefix}-{name}" / "1")
        damage(staging / f"{prefix}-{name}" / "1")
    for name, damage_settings in SETTINGS_DAMAGES.items():
        shutil.copytree(sound, staging / f"{prefix}-settings-{name}" / "1")
        damage_settings(staging / f"{prefix}-settings-{name}")
    for name in ILLEGIBLE:
        shutil.copytree(sound, staging / f"{prefix}-{name}" / "1")
    for model in staging.iterdir():
        model.rename(repository / model.name)


def strange_names(prefix: str) -> set[str]:
    settings = {f"settings-{name}" for name in SETTINGS_DAMAGES}
    return {f"{prefix}-{name}" for name in {*STRANGE[prefix], *settings, *ILLEGIBLE.values()}}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OLD.publish(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, sound: Path, transport: str) -> Path:
    folder = tmp_path_factory.mktemp(transport) / "models"
    for name in SOUND:
        shutil.copytree(sound, folder / name / "1")
    put_strange(folder, sound, "early")
    return folder


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[ServerProcess]:
    flags = ("--transport", transport, "--poll-s", "0.1")
    with ServerProcess(repository, tmp_path_factory.mktemp("server"), *flags) as process:
        yield process
        assert process.process.poll() is None, process.log


def error_of(server: ServerProcess, model: str, network: TinyNetwork) -> float:
    answer = server.infer(IMAGES, model)
    return float(np.abs(outputs_of(answer)["logits"] - network.logits(IMAGES)).max())


def refused_names(server: ServerProcess) -> set[str]:
    index = server.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    return {entry.name for entry in index if entry.state == "UNAVAILABLE"}


def check_refused(server: ServerProcess, prefix: str) -> None:
    """Check that the strange models are in the index, each with its reason, and do not serve."""
    index = server.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    strange = {entry.name: entry for entry in index if entry.name.startswith(prefix)}
    assert set(strange) == strange_names(prefix)
    for entry in strange.values():
        assert entry.state == "UNAVAILABLE", entry
        assert entry.reason
        assert is_legible(entry.reason)


def test_server_starts_and_reports_each_fault(server: ServerProcess) -> None:
    for name in SOUND:
        assert error_of(server, name, OLD) < 1e-5
        assert server.stub.ModelMetadata(pb.ModelMetadataRequest(name=name)).properties["labels"]
    check_refused(server, "early")
    for path in ("/readyz", "/healthz"):
        assert get(server, path)[0] == 200
    samples = scrape(server)
    assert samples.value("foldserve_model_ready", model="zz-sound", version="1") == 1
    assert samples.value("foldserve_model_ready", model="early-caf\\xe9", version="1") == 0


def test_load_by_name_reports_the_fault(server: ServerProcess) -> None:
    def load(name: str) -> tuple[grpc.StatusCode, str]:
        request = pb.RepositoryModelLoadRequest(model_name=name)
        return status_of(lambda: server.stub.RepositoryModelLoad(request))

    for name, (_, reasons) in list(STRANGE["early"].items())[::3]:  # each looks at the whole repository
        code, text = load(f"early-{name}")
        assert code == grpc.StatusCode.UNAVAILABLE
        assert any(words in text for words in reasons), text
    for name in list(SETTINGS_DAMAGES)[::7]:
        assert load(f"early-settings-{name}")[0] == grpc.StatusCode.UNAVAILABLE
    for name in ILLEGIBLE.values():
        code, text = load(f"early-{name}")
        assert code == grpc.StatusCode.NOT_FOUND
        assert "rename the folder" in text
    server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="zz-sound"))


def test_changes_are_followed_beside_strange_folders(
    server: ServerProcess, repository: Path, sound: Path, tmp_path: Path
) -> None:
    put_strange(repository, sound, "late")
    shutil.copytree(sound, repository / "zzz" / "1")
    eventually(lambda: serves(server, "zzz", "1"), "a model that sorts last is served")
    eventually(
        lambda: strange_names("late") <= refused_names(server),
        "the strange ones are refused",
    )
    check_refused(server, "late")
    overwrite(repository / "zzz" / "1", NEW, tmp_path / "new")
    eventually(lambda: error_of(server, "zzz", NEW) < 1e-5, "it is replaced")
    shutil.rmtree(repository / "zzz")
    eventually(lambda: not states(server, "zzz"), "it is unloaded")
    for model in repository.glob("late-*"):
        shutil.rmtree(model)
    eventually(lambda: not any(states(server, name) for name in strange_names("late")), "they are forgotten")


def test_polls_leave_no_descriptors_open(server: ServerProcess, repository: Path, sound: Path) -> None:
    def look(times: int) -> int:
        for _ in range(times):  # a look has ended when what it found is served, and another when it is gone
            shutil.copytree(sound, repository / "zzz-marker" / "1")
            eventually(lambda: serves(server, "zzz-marker", "1"), "the marker is served")
            shutil.rmtree(repository / "zzz-marker")
            eventually(lambda: not states(server, "zzz-marker"), "the marker is unloaded")
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    before = look(1)
    assert look(5) < before + 8, "a descriptor a look and strange folder would be dozens"
