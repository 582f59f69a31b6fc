"""Tests hints for a wrong --repository: one level too deep or too high, misspelt or empty."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from foldserve.errors import ArtifactError
from foldserve.serving.repository.folder_hints import explain_emptiness
from foldserve.serving.repository.scanner import scan
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, run_cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("given", "kind"), [("tiny", "the folder of one model"), ("tiny/1", "a version of a model")]
)
def test_model_or_version_folder_given_as_repository_is_explained(
    models: Path, given: str, kind: str
) -> None:
    message = f"{models / given} is {kind}; a repository holds .*: give --repository {models}$"
    with pytest.raises(ArtifactError, match=message):
        scan(models / given)


def test_model_folder_given_as_current_folder_is_explained(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models / "tiny")
    for command in ("list", "verify"):
        ended = run_cli("models", command, "--repository", ".")
        assert ended.returncode == 1
        assert f"give --repository {models}\n" in ended.stderr


@pytest.mark.parametrize("given", ["tiny", "tiny/1"])
def test_serve_exits_with_the_repository_to_give(models: Path, given: str) -> None:
    ended = run_cli("serve", "--repository", str(models / given), "--port", "0", "--device", "cpu")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.endswith(f"give --repository {models}\n")


def test_misspelt_repository_is_suggested(models: Path) -> None:
    with pytest.raises(ArtifactError, match=f"did you mean {models}\\?"):
        scan(models.with_name("model"))


def test_repository_one_level_down_is_found(models: Path) -> None:
    said = explain_emptiness(models.parent)
    assert (
        said
        == f"there are no models in {models.parent}, but there are in {models}: give --repository {models}"
    )


def test_folder_with_other_files_is_not_called_empty(tmp_path: Path) -> None:
    assert explain_emptiness(tmp_path).startswith("the repository is empty: `foldserve export --repository ")
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert explain_emptiness(tmp_path).startswith("the repository has no readable NAME/VERSION/ folder: ")


def test_empty_repository_is_reported_and_served_once_it_has_models(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with ServerProcess(tmp_path / "models", tmp_path / "server") as server:
        assert "no model serves; the repository is empty: `foldserve export" in server.log
