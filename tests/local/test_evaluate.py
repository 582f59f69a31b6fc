"""`foldserve evaluate`: figures that follow from the answers, a verdict, one report file."""

from __future__ import annotations

import csv
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from foldserve import LocalModel, cli
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def run(model: Path, data: Path, *flags: str) -> int:
    return cli.main(["evaluate", str(model), "--data", str(data), *flags])


def answers(model: Path, pictures: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return labels and predictions of every picture."""
    paths = sorted(path for path in pictures.rglob("*.*") if path.is_file())
    opened = LocalModel(model)
    truth = np.array([opened.labels.index(path.parent.name) for path in paths])
    return truth, opened.predict(paths).ranked()[:, 0]


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def test_figures_follow_from_the_answers(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, pictures, "--out", str(tmp_path / "judged")) == 0
    truth, guesses = answers(model, pictures)
    found = metrics(tmp_path / "judged")
    assert found["accuracy"] == pytest.approx((truth == guesses).mean())
    assert found["image_count"] == 84
    assert found["sha256"] == LocalModel(model).hash
    for index, each in enumerate(found["classes"]):
        assert each["recall"] == pytest.approx((guesses[truth == index] == index).mean())
    printed = capsys.readouterr().out
    assert f"accuracy    {(truth == guesses).mean():.2%}" in printed
    assert re.search(r"images/s    [\d,]+", printed)
    with (tmp_path / "judged" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["right"]) for row in rows] == (truth == guesses).astype(int).tolist()
    assert {path.name for path in (tmp_path / "judged").iterdir()} == {
        "report.html",
        "metrics.json",
        "predictions.csv",
    }


def test_report_is_one_file_that_names_the_worst_mistakes(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model, pictures, "--out", str(tmp_path), "--worst", "3")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    with (tmp_path / "predictions.csv").open() as stream:
        wrong = [row for row in csv.DictReader(stream) if row["right"] == "0"]
    wrong.sort(key=lambda row: -float(row["probability"]))
    named = re.findall(r"<code>(.*?)</code>", page)
    assert named == [row["path"] for row in wrong[:3]]
    assert re.findall(r"^mistake     (.*?): ", capsys.readouterr().out, re.MULTILINE) == named


def test_unknown_answers_are_mistakes_in_all_that_is_written(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model, pictures, "--out", str(tmp_path), "--min-confidence", "1")
    found = metrics(tmp_path)
    assert found["unknown_count"] == found["image_count"]
    assert found["accuracy"] == found["macro_f1"] == 0
    assert {each["recall"] for each in found["classes"]} == {0}
    assert {each["precision"] for each in found["classes"]} == {None}
    mistakes = re.findall(r"^mistake .*", capsys.readouterr().out, re.MULTILINE)
    assert mistakes
    assert all("taken for unknown, " in line for line in mistakes)
    page = (tmp_path / "report.html").read_text()
    assert "predicted as unknown: 12 (100.0%)" in page
    assert page.count("taken for <b>unknown</b>") == len(mistakes)


def test_no_least_confidence_changes_nothing(model: Path, pictures: Path, tmp_path: Path) -> None:
    for place, flags in (("without", ()), ("zero", ("--min-confidence", "0"))):
        run(model, pictures, "--out", str(tmp_path / place), *flags)
    found = [metrics(tmp_path / place) | {"images_per_s": 0} for place in ("without", "zero")]
    assert found[0] == found[1]
    assert "unknown" not in (tmp_path / "zero" / "report.html").read_text()


def test_accuracy_below_the_one_asked_for_is_status_1(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, guesses = answers(model, pictures)
    accuracy = float((truth == guesses).mean())
    assert run(model, pictures, "--min-accuracy", str(accuracy)) == 0
    assert run(model, pictures, "--min-accuracy", str(accuracy + 0.001)) == 1
    assert "--min-accuracy asks for" in capsys.readouterr().err
    assert run(model, pictures, "--min-accuracy", "93") == 2  # not a share


def test_two_versions_are_compared_on_the_same_images(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model, pictures, "--against", "1", "--out", str(tmp_path))
    truth, second = answers(model / "2", pictures)
    _, first = answers(model / "1", pictures)
    found = metrics(tmp_path)
    assert found["mcnemar"]["only_first_right"] == ((second == truth) & (first != truth)).sum()
    assert found["mcnemar"]["only_second_right"] == ((first == truth) & (second != truth)).sum()
    assert found["against"]["accuracy"] == pytest.approx((first == truth).mean())
    assert "McNemar     only colour 2 is right on" in capsys.readouterr().out
    assert run(model / "2", pictures, "--against", "1") == 0  # also from a version's folder


def test_versions_with_other_labels_are_not_compared(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = TinyNetwork(class_count=3).publish(tmp_path / "other")
    assert run(model, pictures, "--against", str(other)) == 1
    error = capsys.readouterr().err
    assert f"{other} has other labels than {model / '2'} (" in error


def test_existing_reports_are_refused(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").write_text("precious")
    assert run(model, pictures, "--out", str(tmp_path)) == 1
    assert "report.html exists already; replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "precious"
    assert run(model, pictures, "--out", str(tmp_path), "--overwrite") == 0


def test_broken_images_and_unknown_labels_fail_unless_skipped(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "label 2" / "broken.png").write_bytes(b"text")
    (data / "lable 2").mkdir()
    shutil.copy(data / "label 2" / "01.png", data / "lable 2")
    assert run(model, data, "--out", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "broken: label 2/broken.png: not an image" in error
    assert "has the label 'lable 2', which the model does not have (did you mean 'label 2'?)" in error
    assert "2 of 86 images cannot be used" in error
    assert not list((tmp_path / "out").iterdir())
    assert run(model, data, "--skip-broken") == 0
    assert "images      84 of" in capsys.readouterr().out


def test_images_that_cannot_be_used_are_listed_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{index}.png,label 0\n" for index in range(120)))
    assert run(model, table) == 1
    *listed, rest, last = capsys.readouterr().err.splitlines()
    assert len(listed) == 20
    assert rest == "broken: 100 more"
    assert "none of the 120 images can be used (table.csv, line 2 (0.png): the file does not exist)" in last
    assert "more" not in last


def test_what_is_left_out_is_said(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "p")
    label = min(folder.iterdir())
    (label / "a.jfif").touch()
    (label / "broken.png").symlink_to(tmp_path / "none.png")
    assert run(model, folder) == 0
    said = capsys.readouterr()
    assert "images      84 of " in said.out
    assert "left out: 1 .jfif; images are read from .bmp" in said.err
    broken = f"{label.name}/broken.png"
    assert f"left out: names that are not files, such as broken links (1): {broken}\n" in said.err


def test_images_without_splits_may_have_been_trained_on_and_that_is_said(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "split       none: images that the model was trained on may be among them\n"
    assert run(model, pictures) == 0
    assert said in capsys.readouterr().out
    (tmp_path / "test").symlink_to(pictures)
    assert run(model, tmp_path, "--out", str(tmp_path / "judged")) == 0
    assert said not in capsys.readouterr().out


def test_held_out_images_of_a_split_folder_are_judged(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        shutil.copytree(pictures, tmp_path / split)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "label 0" / "more.png")
    assert run(model, tmp_path) == 0
    assert f"images      84 of {tmp_path / 'test'}" in capsys.readouterr().out


def test_folders_without_labels_are_explained(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(min(pictures.rglob("*.png")), tmp_path)
    assert run(model, tmp_path) == 1
    assert "has no folders of labels; expected" in capsys.readouterr().err
