"""A folder that is a repository, and one that holds a version's files itself."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from foldserve.errors import ArtifactError
from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.config import ServeConfig
from foldserve.serving.errors import NotFoundError
from foldserve.serving.repository.repository import ModelRepository
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, run_cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS = ModelSettings(device="cpu", intra_op_threads=1)


@pytest.fixture
def models(tmp_path: Path, network: TinyNetwork) -> Path:
    """A repository with tiny/1 and tiny/2."""
    network.publish(tmp_path / "models" / "tiny")
    TinyNetwork(seed=2).publish(tmp_path / "models" / "tiny")
    return tmp_path / "models"


@pytest.fixture
def flat(models: Path) -> Path:
    return models / "tiny" / "1"


@pytest.fixture
def repository(flat: Path) -> Iterator[ModelRepository]:
    opened = ModelRepository(flat, SETTINGS, settle_s=0, model_name="digits")
    opened.load_all()
    yield opened
    opened.close(grace_s=5)


def replace(flat: Path, seed: int) -> None:
    """Put another network's files in the place of those in the folder, one after the other."""
    other = TinyNetwork(seed).publish(flat.parent / f"seed-{seed}")
    for path in other.iterdir():
        shutil.copy(path, flat / path.name)


def test_the_folder_itself_is_version_1_of_the_model_named(repository: ModelRepository) -> None:
    assert [(entry.name, entry.version, entry.state) for entry in repository.index.entries()] == [
        ("digits", 1, "READY")
    ]
    assert repository.index.find("digits", "1") is repository.index.find("digits", "")
    with pytest.raises(NotFoundError, match="it has 'digits'"):
        repository.index.find("tiny", "")


def test_other_files_in_the_folder_take_the_place_of_the_old(repository: ModelRepository, flat: Path) -> None:
    before = repository.index.find("digits", "").verified.sha256
    replace(flat, seed=7)
    repository.refresh()
    after = repository.index.find("digits", "").verified.sha256
    assert after != before
    (flat / "model.onnx").write_bytes(b"damaged")
    for _ in range(3):
        repository.refresh()
    assert repository.index.find("digits", "").verified.sha256 == after
    assert "model.onnx" in repository.index.entries()[0].reason


def test_files_that_come_later_and_go_again_are_followed(tmp_path: Path, network: TinyNetwork) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    repository = ModelRepository(folder, SETTINGS, settle_s=0, model_name="digits")
    repository.load_all()
    assert repository.index.entries() == []
    shutil.copytree(network.publish(tmp_path / "elsewhere"), folder, dirs_exist_ok=True)
    repository.refresh()
    assert repository.index.is_ready("digits", "")
    for path in folder.iterdir():
        path.unlink()
    for _ in range(2):  # the second look that misses it believes it
        repository.refresh()
    assert repository.index.entries() == []
    repository.close(grace_s=5)


def test_a_file_that_is_missing_is_the_reason_why_it_does_not_serve(flat: Path) -> None:
    (flat / "golden.npz").unlink()
    repository = ModelRepository(flat, SETTINGS, model_name="digits")
    repository.load_all()
    (entry,) = repository.index.entries()
    assert (entry.state, entry.reason) == ("UNAVAILABLE", "golden.npz is missing from the version's folder")


def test_settings_and_loading_by_hand_hold_for_it_too(flat: Path) -> None:
    (flat / "model.toml").write_text("max_batch_size = 5\n")
    repository = ModelRepository(flat, SETTINGS, model_name="digits")
    repository.load_all(["digits"])
    assert repository.index.find("digits", "").settings.max_batch_size == 5
    repository.unload("digits")
    assert not repository.index.is_ready("digits", "")
    repository.load("digits")
    assert repository.index.is_ready("digits", "")
    repository.close(grace_s=5)


def test_a_link_must_not_lead_out_of_the_folder(flat: Path, tmp_path: Path) -> None:
    (flat / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (flat / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    repository = ModelRepository(flat, SETTINGS, model_name="digits")
    repository.load_all()
    assert "leads out of the repository" in repository.index.entries()[0].reason


def test_the_other_layout_is_explained(models: Path) -> None:
    newest = models / "tiny" / "2"
    with pytest.raises(ArtifactError, match=rf"leave out --model-name .* --repository {newest}$"):
        ModelRepository(models, SETTINGS, model_name="tiny")
    with pytest.raises(ArtifactError, match=rf"holds versions \(1, 2\) .* --repository {newest}$"):
        ModelRepository(models / "tiny", SETTINGS, model_name="tiny")
    with pytest.raises(
        ArtifactError, match=rf"is a version of a model; .*--model-name NAME.* --repository {models}$"
    ):
        ModelRepository(newest, SETTINGS)
    with pytest.raises(ArtifactError, match="nowhere cannot be read"):
        ModelRepository(models / "nowhere", SETTINGS, model_name="tiny")


def test_the_explanation_is_one_readable_line(models: Path) -> None:
    for flags in (
        ("--repository", str(models / "tiny" / "1")),
        ("--repository", str(models), "--model-name", "x"),
    ):
        ended = run_cli("serve", *flags, "--port", "0", "--metrics-port", "0")
        assert ended.returncode == 1
        assert ended.stderr.count("\n") == 1
        assert ended.stderr.startswith(f"foldserve serve: {flags[1]} ")


def test_an_empty_folder_is_told_what_it_waits_for(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    with ServerProcess(tmp_path / "mnt", tmp_path / "server", "--model-name", "digits") as server:
        assert (
            f"no model serves; {tmp_path / 'mnt'} holds no model.onnx, which is served as 'digits'"
            in server.log
        )


def test_a_misspelt_folder_is_guessed(flat: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"did you mean {flat.parent}\?"):
        ModelRepository(flat.parent.with_name("tinny"), SETTINGS, model_name="digits")


def test_stray_files_beside_models_do_not_matter(models: Path) -> None:
    for name in ("model.onnx", "manifest.json"):
        shutil.copy(models / "tiny" / "1" / name, models / name)
    repository = ModelRepository(models, SETTINGS)
    assert {entry.name for entry in repository.index.entries()} == {"tiny"}


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "new\nline"])
def test_a_name_that_no_folder_could_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="could be a folder's"):
        ServeConfig(model_name=name)
