"""`foldserve predict`: a row per image, in order, also after a stop."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from foldserve import LocalModel, cli
from foldserve.local import predict as command
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(model: Path, source: Path, out: Path, *flags: str) -> int:
    return cli.main(["predict", str(model), str(source), "--out", str(out), *flags])


def test_rows_are_the_models_answers_in_order(model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    assert run(model, pictures, out, "--top-k", "3") == 0
    paths = sorted(path for path in pictures.rglob("*.*") if path.is_file())
    predictions = LocalModel(model).predict(paths)
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [str(path.relative_to(pictures)) for path in paths]
    assert [row["label"] for row in rows] == predictions.labels()
    assert [np.float32(row["probability"]) for row in rows] == predictions.confidences().tolist()
    assert all(len(row["labels"]) == 3 for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.jsonl"]  # nothing is left beside it


def test_csv_has_the_same_rows(model: Path, pictures: Path, tmp_path: Path) -> None:
    run(model, pictures, tmp_path / "a.jsonl", "--top-k", "2")
    run(model, pictures, tmp_path / "a.csv", "--top-k", "2")
    rows = rows_of(tmp_path / "a.jsonl")
    with (tmp_path / "a.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["path"] for row in table] == [row["path"] for row in rows]
    assert [float(row["probability_2"]) for row in table] == [row["labels"][1]["probability"] for row in rows]
    assert {row["error"] for row in table} == {""}


def test_broken_images_are_rows_with_an_error(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    good = min(pictures.rglob("*.png")).read_bytes()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(good)
    (folder / "b.png").write_bytes(good[: len(good) // 2])
    (folder / "bb.png").symlink_to(tmp_path / "none.png")
    os.mkfifo(folder / "d.png")  # not a file, so not an image: opening it would wait for ever
    assert run(model, folder, tmp_path / "o.jsonl") == 1
    rows = rows_of(tmp_path / "o.jsonl")
    assert [row["path"] for row in rows] == ["a.png", "b.png", "bb.png", "c.png"]
    assert "damaged image" in rows[1]["error"]
    assert rows[2]["error"] == "the file does not exist"
    assert rows[0]["label"] == rows[3]["label"]
    said = capsys.readouterr().err
    assert "2 of 4 images failed" in said
    assert "left out: names that are not files, such as broken links (1): d.png\n" in said


def test_what_is_left_out_is_said(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("b.tif", "c.jfif", "d.tif"):
        (folder / name).touch()
    assert run(model, folder, tmp_path / "o.jsonl") == 1
    assert ".webp); left out: 2 .tif, 1 .jfif; images are read from .bmp" in capsys.readouterr().err
    shutil.copy(min(pictures.rglob("*.png")), folder / "a.png")
    assert run(model, folder, tmp_path / "o.jsonl") == 0
    assert "left out: 2 .tif, 1 .jfif; images are read from .bmp" in capsys.readouterr().err


def test_low_confidence_is_unknown(model: Path, pictures: Path, tmp_path: Path) -> None:
    run(model, pictures, tmp_path / "all.jsonl")
    probabilities = sorted(row["probability"] for row in rows_of(tmp_path / "all.jsonl"))
    limit = probabilities[40]
    run(model, pictures, tmp_path / "sure.jsonl", "--min-confidence", str(limit))
    rows = rows_of(tmp_path / "sure.jsonl")
    unknown = [row["probability"] for row in rows if row["label"] == "unknown"]
    assert sorted(unknown) == [each for each in probabilities if each < limit]
    assert unknown


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_existing_output_is_refused(
    model: Path, pictures: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"o.{suffix}"
    out.write_text("precious")
    assert run(model, pictures, out) == 1
    assert "exists already; replace it with --overwrite" in capsys.readouterr().err
    assert run(model, pictures, out, "--resume") == 1
    assert "is complete already" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert run(model, pictures, out, "--overwrite") == 0
    assert "precious" not in out.read_text()


def test_stopped_runs_go_on_with_the_same_bytes(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed by SIGKILL as soon as rows are written; then the last row is cut as a crash may cut it."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    assert run(model, pictures, whole) == 0
    stopping = (
        "import os, signal; from foldserve import cli; from foldserve.local.output import RowFile\n"
        "write = RowFile.write\n"
        "def once(self, rows): write(self, rows); os.kill(os.getpid(), signal.SIGKILL)\n"
        "RowFile.write = once\n"
        f"words = ['predict', {str(model)!r}, {str(pictures)!r}, '--out', {str(out)!r}]\n"
        "cli.main([*words, '--batch-size', '10'])"
    )
    killed = subprocess.run([sys.executable, "-c", stopping], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    part = tmp_path / "o.jsonl.part"
    assert not out.exists()
    assert len(rows_of(part)) == 80  # a turn of one thread
    part.write_bytes(part.read_bytes()[:-5])
    assert run(model, pictures, out) == 1  # never silently anew
    assert "go on with --resume" in capsys.readouterr().err
    assert run(model, pictures, out, "--resume") == 0
    assert "going on after 79 rows" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert not part.exists()


@pytest.fixture
def stopped(model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The output of a run that was interrupted after its first rows."""
    write = command.RowFile.write

    def once(self: command.RowFile, rows: Any) -> None:
        write(self, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command.RowFile, "write", once)
        assert run(model, pictures, tmp_path / "o.jsonl", "--batch-size", "10") == 130
    return tmp_path / "o.jsonl"


def test_going_on_with_another_model_is_refused(
    stopped: Path, model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(model / "1", pictures, stopped, "--resume") == 1
    assert "was begun with another model; give the same as then" in capsys.readouterr().err
    assert run(model, pictures, stopped, "--resume", "--min-confidence", "0.5") == 1
    assert "another min-confidence" in capsys.readouterr().err
    assert run(model, pictures, stopped, "--resume") == 0


def test_going_on_after_the_folder_changed_is_refused(
    stopped: Path, model: Path, pictures: Path, network: TinyNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    added = pictures / network.labels[0] / "00a.png"
    added.write_bytes(b"")
    try:
        assert run(model, pictures, stopped, "--resume") == 1
    finally:
        added.unlink()
    error = capsys.readouterr().err
    assert "cannot be continued: its row 2 is of label 0/01.png, and it is label 0/00a.png now" in error


def test_two_processes_do_not_write_one_output(
    stopped: Path, model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with command.RowFile(stopped, resume=True, overwrite=False):
        assert run(model, pictures, stopped, "--resume") == 1
    assert "is being written by another process" in capsys.readouterr().err


def test_full_disks_lose_nothing(
    model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """/dev/full answers as a full disk does."""
    out = tmp_path / "o.jsonl"
    begin = command.RowFile.begin

    def fill(self: command.RowFile, *arguments: Any) -> None:
        begin(self, *arguments)
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, self._stream.fileno())
        os.close(full)

    with monkeypatch.context() as patch:
        patch.setattr(command.RowFile, "begin", fill)
        patch.setattr(command.RowFile, "skip_done", lambda _, items: items)
        assert run(model, pictures, out) == 1
    assert "No space left on device; the rows so far are kept" in capsys.readouterr().err
    assert run(model, pictures, out, "--resume") == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("none", "none does not exist", id="missing"),
        pytest.param("empty", "empty holds no images", id="empty folder"),
        pytest.param("notes.txt", "is of an unknown kind; expected a folder of images", id="other file"),
    ],
)
def test_useless_sources_are_explained(
    model: Path, tmp_path: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    assert run(model, tmp_path / source, tmp_path / "o.jsonl") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("o.jsonl*"))


def test_resume_and_overwrite_exclude_each_other(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, pictures, tmp_path / "o.csv", "--resume", "--overwrite") == 2
    assert run(model, pictures, tmp_path / "o.txt") == 2
    assert "expected a file that ends in .jsonl, .csv, .parquet" in capsys.readouterr().err
