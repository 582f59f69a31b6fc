"""Output paths are checked first, before any training, verification or download."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, get_args

import pytest

from foldserve import cli
from foldserve.cli import COMMANDS
from foldserve.export.errors import SourceError
from foldserve.export.publish import check_writable

# Every flag that names a file or folder: those that are written, and those that are only read.
WRITTEN = {
    "train": {"run_dir", "preview"},
    "export": {"repository"},
    "serve": {"port_file", "metrics_port_file", "http_port_file"},
    "evaluate": {"out"},
    "predict": {"out"},
    "token": {"tokens"},
    "tune": {"run_dir"},
    "runs compare": {"out"},
    "models promote": {"repository"},
    "models rollback": {"repository"},
    "models delete": {"repository"},
    "demo": {"run_dir", "repository"},
}
READ = {
    "train": {"data_dir", "config", "init"},
    "export": {"source", "data_dir", "weights", "labels", "images"},
    "serve": {"repository", "tls_cert", "tls_key", "tls_client_ca", "tokens"},
    "classify": {"images", "tls_ca", "tls_cert", "tls_key", "token_file"},
    "evaluate": {"model", "data"},
    "predict": {"model", "source"},
    "models list": {"repository", "tls_ca", "tls_cert", "tls_key", "token_file"},
    "models verify": {"repository", "against", "data_dir"},
    "models diff": {"repository", "images"},
    "tune": {"data_dir", "config", "init", "preview"},  # which it refuses
    "runs list": {"folder"},
    "runs compare": {"runs"},
    # The written ones, keep and port_file, are tested in tests/ui, without Gradio.
    "ui": {"repository", "keep", "port_file", "tls_ca", "tls_cert", "tls_key", "token_file"},
    "demo": {"data_dir"},
}
# What would take long, and must not be begun.
LONG = {
    "train": ["foldserve.training.run.train._load"],
    "export": ["foldserve.export.pipeline.load_source", "foldserve.export.pipeline.build_model"],
    "serve": ["foldserve.serving.server._load"],
    "evaluate": ["foldserve.local.evaluate.LocalModel"],
    "predict": ["foldserve.local.predict.LocalModel"],
    "token": [],
    "tune": ["foldserve.training.run.train._load"],
    "runs compare": [],
    "models promote": [],
    "models rollback": [],
    "models delete": [],
    "demo": ["foldserve.training.run.train._load", "foldserve.demo.pipeline._export"],
}


def holds_a_path(annotation: Any) -> bool:
    return annotation is Path or any(map(holds_a_path, get_args(annotation)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_is_known_to_be_read_or_written(command: str) -> None:
    """A new flag that is written to belongs among the tests below."""
    fields = COMMANDS[command].config.model_fields
    paths = {name for name, field in fields.items() if holds_a_path(field.annotation)}
    assert paths == WRITTEN.get(command, set()) | READ.get(command, set())


def refuses_at_the_door(words: list[str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LONG[command]:
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("it was begun"))
    assert cli.main(words) == 1


@pytest.mark.parametrize(
    ("command", "field"),
    [(command, field) for command, fields in WRITTEN.items() for field in sorted(fields)],
)
def test_paths_that_cannot_be_written_are_refused_first(
    command: str,
    field: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Below a file nobody can write, root neither."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "models").mkdir()
    needed = {"serve": {"repository": tmp_path / "models"}, "token": {"name": "a"}}.get(command, {})
    needed = {"run_dir": tmp_path / "run", **needed} if command in ("train", "tune", "demo") else needed
    needed = {"data": tmp_path, **needed} if command == "evaluate" else needed
    name = "below.csv" if command == "predict" else "below.png"
    settings = needed | {field: tmp_path / "file" / name}
    positional = {
        "export": ["runs/none"],
        "evaluate": ["models/none"],
        "predict": ["models/none", "none"],
        "runs compare": ["runs/none"],
        "models promote": ["none", "1"],
        "models rollback": ["none"],
        "models delete": ["none", "1"],
    }
    words = [*command.split(), *positional.get(command, [])]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    words += ["--port=0", "--metrics-port=0", "--http", "--http-port=0"] if command == "serve" else []
    refuses_at_the_door(words, command, monkeypatch)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"foldserve {command}: ")
    assert str(tmp_path / "file") in error


def test_a_read_only_file_system_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root no permission is missing, but the system says so when a file is made."""

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("foldserve.export.publish.tempfile.TemporaryFile", refuse)
    with pytest.raises(
        SourceError, match="models/lenet cannot be written: Read-only file system; give anoth"
    ):
        check_writable(tmp_path / "models" / "lenet")


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "models" / "lenet")
    assert list(tmp_path.iterdir()) == []
