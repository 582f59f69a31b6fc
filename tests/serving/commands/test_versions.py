"""`foldserve models promote`, `rollback`, `delete` and `list`, in one process, over tiny versions."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from foldserve import cli
from foldserve.artifact.numbering import LAST_VERSION_FILE
from foldserve.artifact.promotion import PROMOTED_FILE, read_promotions
from foldserve.serving.repository.model_file import SETTINGS_FILE
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 3 are the same network."""
    repository = tmp_path_factory.mktemp("published")
    for seed in (1, 2, 1):
        TinyNetwork(seed).publish(repository / "tiny")
    return repository


@pytest.fixture
def repository(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "models")


class Models:
    """Runs `foldserve models ...` in this process."""

    def __init__(self, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.repository, self._capsys = repository, capsys

    def __call__(self, *words: str, status: int = 0) -> str:
        given = ["models", *words, "--repository", str(self.repository)]
        assert cli.main(given) == status, self._capsys.readouterr().err
        printed = self._capsys.readouterr()
        if status:
            assert printed.err.strip().count("\n") == 0
        return printed.err if status else printed.out

    def promoted(self) -> list[int]:
        return [each.version for each in read_promotions(self.repository / "tiny")]

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.repository / "tiny").iterdir() if path.is_dir())


@pytest.fixture
def models(repository: Path, capsys: pytest.CaptureFixture[str]) -> Models:
    return Models(repository, capsys)


def rows(listed: str) -> list[str]:
    return [line for line in listed.splitlines() if line.startswith("tiny")]


def test_promotions_are_undone_one_by_one(models: Models) -> None:
    assert "version 1 answers requests that name none (before: 3)" in models("promote", "tiny", "1")
    assert "before: 1" in models("promote", "tiny", "2")
    assert "promoted already" in models("promote", "tiny", "2")
    assert models.promoted() == [1, 2]
    assert "back from 2 to 1" in models("rollback", "tiny")
    assert "back from 1 to 3, the newest" in models("rollback", "tiny")
    assert models.promoted() == []
    assert "nothing to go back to" in models("rollback", "tiny", status=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", "tiny", "7"), "tiny has no version 7; it has 1, 2, 3"),
        (("promote", "tiny", str(2**63 - 1)), "tiny has no version 9223372036854775807"),
        (("promote", "none", "1"), "there is no model 'none'"),
        (("rollback", "none"), "there is no model 'none'"),
        (("delete", "tiny", "7"), "tiny has no version 7; it has 1, 2, 3"),
        (("diff", "tiny", "1", "7"), "tiny has no version 7; it has 1, 2, 3"),
        (("diff", "none", "1", "2"), "none does not exist"),
    ],
)
def test_what_is_not_there_is_named(models: Models, words: Sequence[str], said: str) -> None:
    assert said in models(*words, status=1)


def test_a_damaged_version_is_not_promoted(models: Models) -> None:
    file = models.repository / "tiny" / "2" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert "version 2 of tiny is damaged" in models("promote", "tiny", "2", status=1)
    assert models.promoted() == []
    models("promote", "tiny", "1")  # its sound twin is
    assert models.promoted() == [1]


def test_rollback_refuses_another_model_under_the_same_number(models: Models) -> None:
    models("promote", "tiny", "1")
    models("promote", "tiny", "2")
    folder = models.repository / "tiny"
    shutil.rmtree(folder / "1")
    shutil.copytree(folder / "2", folder / "1")
    assert "version 1 of tiny, promoted before 2, is not the model" in models("rollback", "tiny", status=1)
    assert models.promoted() == [1, 2]


def test_delete_refuses_what_answers_by_default(models: Models) -> None:
    refused = models("delete", "tiny", "3", status=1)
    assert "version 3 of tiny answers the requests that name none: promote another (1, 2)" in refused
    models("promote", "tiny", "1")
    assert "version 1 of tiny answers" in models("delete", "tiny", "1", status=1)
    assert "deleted version 3; version 1 answers" in models("delete", "tiny", "3")
    assert models.folders() == ["1", "2"]


def test_a_forced_delete_takes_the_promotion_along(models: Models) -> None:
    for version in ("1", "2", "1", "3"):
        models("promote", "tiny", version)
    assert "version 1 answers" in models("delete", "tiny", "3", "--force")
    assert models.promoted() == [1, 2, 1]
    models("delete", "tiny", "1", "--force")
    assert (models.promoted(), models.folders()) == ([2], ["2"])
    assert "no version is left" in models("delete", "tiny", "2", "--force")
    assert not (models.repository / "tiny" / PROMOTED_FILE).exists()


def test_deleted_numbers_are_not_given_again(models: Models) -> None:
    """Also where nothing recorded them as they were exported, as earlier releases did not."""
    folder = models.repository / "tiny"
    (folder / LAST_VERSION_FILE).unlink()
    models("delete", "tiny", "3", "--force")
    assert TinyNetwork(4).publish(folder).name == "4"
    for version in ("1", "2", "4"):
        models("delete", "tiny", version, "--force")
    assert "there are no models" in models("list") or rows(models("list")) == []
    assert TinyNetwork(5).publish(folder).name == "5"


def test_delete_refuses_a_broken_file_of_numbers_unless_forced(models: Models) -> None:
    folder = models.repository / "tiny"
    (folder / LAST_VERSION_FILE).write_text("{")
    assert f"{LAST_VERSION_FILE} is malformed" in models("delete", "tiny", "1", status=1)
    assert models.folders() == ["1", "2", "3"]
    models("delete", "tiny", "3", "--force")
    assert TinyNetwork(4).publish(folder).name == "4"


def test_the_file_of_numbers_is_not_read_outside_the_repository(models: Models, tmp_path: Path) -> None:
    file = models.repository / "tiny" / LAST_VERSION_FILE
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    assert "leads out of the repository" in models("delete", "tiny", "1", status=1)


def test_the_version_policy_says_which_version_answers(models: Models) -> None:
    """As it does in the server: of `specific` versions the newest, unless another one is promoted."""
    (models.repository / "tiny" / SETTINGS_FILE).write_text("version_policy = { specific = [1, 2] }\n")
    assert ["default" in row for row in rows(models("list"))] == [False, True, False]
    assert "version 2 of tiny answers" in models("delete", "tiny", "2", status=1)
    assert "deleted version 3; version 2 answers" in models("delete", "tiny", "3")
    assert "(before: 2)" in models("promote", "tiny", "1")
    assert "back from 1 to 2" in models("rollback", "tiny")
    models("delete", "tiny", "2", "--force")
    (models.repository / "tiny" / SETTINGS_FILE).write_text("version_policy = { specific = [7] }\n")
    assert not any("default" in row for row in rows(models("list")))
    assert "before: none" in models("promote", "tiny", "1")


def test_malformed_settings_change_nothing_and_are_one_line(models: Models) -> None:
    models("promote", "tiny", "1")
    models("promote", "tiny", "2")
    (models.repository / "tiny" / SETTINGS_FILE).write_text("version_policy = 3\n")
    for words in (("promote", "tiny", "3"), ("rollback", "tiny")):
        assert "until it is mended a server follows no change" in models(*words, status=1)
    assert models.promoted() == [1, 2]
    listed = rows(models("list"))
    assert "BROKEN" in listed[0]
    assert len(listed) == 4
    assert "deleted version 3" in models("delete", "tiny", "3", "--force")


def test_files_that_cannot_be_removed_are_one_line(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """And other commands wait until a version's files are gone, not to remove them at the same time."""

    def fail(path: Path, **_: object) -> None:
        folder = os.open(path.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("foldserve.serving.commands.versions.shutil.rmtree", fail)
    assert "tiny cannot be changed: Permission denied" in models("delete", "tiny", "1", status=1)
    monkeypatch.undo()
    assert models.folders()[-2:] == ["2", "3"], "it is gone all the same"


def test_a_version_disappears_at_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended while it removes files, a command leaves no half version; the next one clears up."""

    def ended(path: Path, **_: object) -> None:
        if not path.name.startswith(".deleted-"):
            raise AssertionError(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("foldserve.serving.commands.versions.shutil.rmtree", ended)
    models("delete", "tiny", "1", status=130)
    monkeypatch.undo()
    aside = [path for path in (models.repository / "tiny").iterdir() if path.name.startswith(".deleted-")]
    assert len(aside) == 1
    assert len(rows(models("list"))) == 2
    models("delete", "tiny", "2")
    assert models.folders() == ["3"]


def test_a_list_tells_origins_twins_and_the_default(models: Models) -> None:
    file = models.repository / "tiny" / "2" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest |= {"created_at": "2026-02-03T04:05:06+00:00", "accuracy": {"after": 0.9512}}
    file.write_text(json.dumps(manifest | {"source": {"run": "lenet-long"}}))
    first, second, third = rows(models("list"))
    assert "0.9512" not in second
    assert second.split()[3:7] == ["95.12%", "2026-02-03", "04:05", "lenet-long"]
    assert ("same as 1" in first, "same as 1" in second, "same as 1" in third) == (False, False, True)
    assert ("default" in first, "default" in third) == (False, True)
    models("promote", "tiny", "1")
    first, _, third = rows(models("list"))
    assert ("promoted" in first, "default" in third) == (True, False)


def test_origins_that_are_nonsense_are_left_out(models: Models) -> None:
    file = models.repository / "tiny" / "2" / "manifest.json"
    manifest = json.loads(file.read_text())
    nonsense = {"created_at": 7, "accuracy": {"after": "much"}, "source": ["run"]}
    file.write_text(json.dumps(manifest | nonsense))
    assert "complete" in rows(models("list"))[1]


def test_a_broken_promotion_is_shown_and_does_not_hide_the_versions(models: Models) -> None:
    (models.repository / "tiny" / PROMOTED_FILE).write_text("{")
    listed = rows(models("list"))
    assert "promoted.json is malformed" in listed[0]
    assert len(listed) == 4
    assert "promoted.json is malformed" in models("promote", "tiny", "1", status=1)
