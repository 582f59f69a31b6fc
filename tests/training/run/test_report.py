"""The pictures of the report show the right numbers."""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import torch
from matplotlib import font_manager
from PIL import Image
from rich.console import Console

from foldserve.terminal import Terminal, duration_text
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import Dataset, registry
from foldserve.training.engine.evaluation import Evaluation
from foldserve.training.errors import RunError
from foldserve.training.run.fonts import font_families
from foldserve.training.run.mistakes import worst_mistakes
from foldserve.training.run.pictures import confusion_matrix, draw_confusion_matrix, draw_curves, draw_images
from foldserve.training.run.preview import augmented_draws
from foldserve.training.run.samples import write_samples
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_are_true_classes_and_columns_predicted_ones():
    counts = confusion_matrix(torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 2]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("class_count", [2, 10, 40, 300])
def test_a_confusion_matrix_is_drawn_also_with_a_class_that_never_occurs(tmp_path: Path, class_count: int):
    counts = torch.eye(class_count, dtype=torch.int64) * 50
    counts[0] = 0
    path = tmp_path / "matrix.png"
    draw_confusion_matrix(path, counts, [f"a rather long label {i}" for i in range(class_count)], "title")
    with Image.open(path) as image:
        assert min(image.size) > 500
        assert image.convert("L").getextrema()[0] < 60  # something dark: text and diagonal


@pytest.mark.parametrize("epochs", [1, 2, 50])
def test_curves_are_drawn_for_any_number_of_epochs(tmp_path: Path, epochs: int):
    history = [
        {
            "epoch": epoch,
            "lr": 0.1,
            "train_loss": 1 / epoch,
            "train_accuracy": 0.5,
            "validation_loss": 2 / epoch,
            "validation_accuracy": 1 - 1 / (1 + epoch),
        }
        for epoch in range(1, epochs + 1)
    ]
    draw_curves(tmp_path / "curves.png", history, "title")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 2 * image.height > 800


def test_the_worst_mistakes_are_the_most_confident_wrong_answers():
    test = Evaluation(
        loss=1.0,
        accuracy=0.4,
        macro_f1=0.4,
        predictions=torch.tensor([0, 1, 1, 0, 2]),
        confidences=torch.tensor([0.99, 0.5, 0.9, 0.7, 0.95]),
    )
    targets = torch.tensor([0, 0, 0, 1, 2])
    assert worst_mistakes(test, targets, 10).tolist() == [2, 3, 1]
    assert worst_mistakes(test, targets, 1).tolist() == [2]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_drawn_in_grey_and_colour(tmp_path: Path, channels: int):
    """One bright image with a caption: the middle of its picture has its colour."""
    images = torch.zeros(1, channels, 8, 8, dtype=torch.uint8)
    images[:, 0] = 250
    draw_images(tmp_path / "images.png", images, ["a caption"], "title", columns=1)
    with Image.open(tmp_path / "images.png") as picture:
        middle = picture.convert("RGB").getpixel((picture.width // 2, int(picture.height * 0.6)))
    assert middle == ((250, 250, 250) if channels == 1 else (250, 0, 0))


def test_the_report_of_a_run_shows_its_pictures_and_figures_and_is_safe_against_odd_names(
    tiny_config: TrainConfig, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
):
    odd = replace(tiny, labels=("<b>north</b>", "$x$_{", "south & all", "west" * 30))
    monkeypatch.setitem(registry.DATASETS, "tiny", lambda _folder, _terminal: odd)
    assert train(tiny_config, LineTerminal()) == 0
    folder = tiny_config.run_dir / "report"
    page = (folder / "report.html").read_text()
    embedded = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    for content in embedded:
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.width > 300
    assert len(embedded) == len(re.findall(r"<img ", page)) == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # one file, which can be mailed
    best = load_checkpoint(tiny_config.run_dir)
    assert f"{best.metrics['test_accuracy']:.2%}" in page
    assert "<td>32</td>" in page  # the batch size, among the settings
    learned = sum(parameter.numel() for parameter in best.build().parameters())
    assert f"{learned:,} parameters" in page  # running statistics and counters are none
    parser = HTMLParser()
    parser.feed(page)
    parser.close()


def predictions_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))


def test_the_predictions_name_each_test_image_and_are_those_of_the_figures(
    tiny_config: TrainConfig, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
):
    names = tuple(f"some <class>/picture {number:03}.png" for number in range(len(tiny.test_labels)))
    named = replace(tiny, name="/a/long/way/to/pictures", test_names=names)
    monkeypatch.setitem(registry.DATASETS, "tiny", lambda _folder, _terminal: named)
    config = tiny_config.model_copy(update={"epochs": 1, "lr": 1e-4})  # learns little: there are mistakes
    assert train(config, LineTerminal()) == 0
    rows = predictions_of(config.run_dir / "report")
    assert [row["path"] for row in rows] == list(names)
    assert [row["label"] for row in rows] == [named.labels[label] for label in named.test_labels.tolist()]
    best = load_checkpoint(config.run_dir)
    right = sum(row["right"] == "1" for row in rows)
    assert right / len(rows) == pytest.approx(best.metrics["test_accuracy"])
    assert all((row["label"] == row["prediction"]) == (row["right"] == "1") for row in rows)
    wrong = sorted((row for row in rows if row["right"] == "0"), key=lambda row: -float(row["probability"]))
    page = (config.run_dir / "report" / "report.html").read_text()
    assert html.escape(wrong[0]["path"]) in page
    assert "/a/long/way" not in page.partition("<h2>Settings")[0]  # a title that long is cut off in a picture


def test_images_that_are_no_files_are_named_by_their_number(tiny_config: TrainConfig):
    assert train(tiny_config.model_copy(update={"epochs": 1}), LineTerminal()) == 0
    rows = predictions_of(tiny_config.run_dir / "report")
    assert [rows[0]["path"], rows[-1]["path"]] == ["test image 0", "test image 39"]


def test_labels_that_no_font_can_draw_are_said_in_one_line(
    tiny_config: TrainConfig, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """Matplotlib itself warns once for each character and text, which fails here as any warning does."""
    odd = replace(tiny, labels=("\u732b", "\u72ac 2", "собака", "west"))
    monkeypatch.setitem(registry.DATASETS, "tiny", lambda _folder, _terminal: odd)
    installed = font_manager.fontManager.ttflist
    monkeypatch.setattr(
        font_manager.fontManager, "ttflist", [font for font in installed if "mpl-data" in font.fname]
    )  # a machine without fonts but matplotlib's
    terminal = LineTerminal()
    assert train(tiny_config.model_copy(update={"epochs": 1}), terminal) == 0
    (line,) = [line for line in terminal.lines if "show boxes" in line]
    assert "boxes for characters of the labels (\u72ac\u732b)" in line


def test_a_font_that_has_the_characters_is_taken():
    """Matplotlib brings more than one font; the first lacks this one's arc."""
    families, missing = font_families(["plain", "\N{ARC}"])
    assert (families[0], missing) == ("DejaVu Sans", "")
    assert len(families) == 2
    assert font_families(["plain"]) == (["DejaVu Sans"], "")


def test_the_preview_shows_augmented_images_and_trains_nothing(tiny_config: TrainConfig, tmp_path: Path):
    terminal = LineTerminal()
    path = tmp_path / "new" / "augmented.png"
    settings = {"preview": path, "mixup": 0.4, "erase_probability": 0.5}
    assert train(TrainConfig(**tiny_config.model_dump() | settings), terminal) == 0
    with Image.open(path) as picture:
        assert min(picture.size) > 1000
    assert terminal.lines == [f"augmented training images: {path}"]
    assert not tiny_config.run_dir.exists()


def test_the_preview_draws_what_training_does(tiny_config: TrainConfig, tiny: Dataset):
    originals = tiny.train_images[:8]
    plain = tiny_config.model_copy(update={"augment": False})
    assert all(torch.equal(draw, originals) for draw in augmented_draws(originals, plain, tiny))
    draws = augmented_draws(originals, tiny_config, tiny)
    assert len({draw.numpy().tobytes() for draw in draws}) == len(draws)


def test_a_preview_that_cannot_be_written_is_refused(tiny_config: TrainConfig, tmp_path: Path):
    with pytest.raises(RunError, match=r"preview .*augmented\.docx cannot be written: .* ends in .*\.png"):
        train(tiny_config.model_copy(update={"preview": tmp_path / "augmented.docx"}), LineTerminal())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (18420, "5 h 07 min")],
)
def test_durations_are_shown_in_two_units(seconds: float, text: str):
    assert duration_text(seconds) == text


def test_in_a_terminal_a_bar_shows_the_share_done_and_where_the_run_is():
    drawn = io.StringIO()
    terminal = Terminal(Console(file=drawn, force_terminal=True, width=120))
    with terminal.training(total_steps=100, done_steps=20) as show:
        show(45, "epoch 2/4 step 20/25 loss 0.512 accuracy 81.2% 4,321 images/s")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue())
    assert "45% epoch 2/4 step 20/25 loss 0.512 accuracy 81.2% 4,321 images/s" in text
    assert "left" in text


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"caf\xe9 and \udce9"), ("utf-8", r"café and \udce9")]
)
def test_text_that_a_terminal_cannot_show_is_escaped(encoding: str, shown: str):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    Terminal(Console(file=stream)).say("café and \udce9")
    stream.flush()
    stream.seek(0)
    assert stream.read() == f"{shown}\n"


def test_the_name_of_a_run_folder_need_not_be_utf_8(tiny_config: TrainConfig):
    run_dir = tiny_config.run_dir.with_name(os.fsdecode(b"caf\xe9"))
    train(tiny_config.model_copy(update={"run_dir": run_dir, "epochs": 1}), LineTerminal())
    assert r"caf\xe9" in (run_dir / "report" / "report.html").read_text(encoding="utf-8")


def test_a_long_epoch_without_a_terminal_reports_the_time_left(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal = LineTerminal()
    with terminal.training(total_steps=100, done_steps=20) as show:
        for steps, seconds in ((30, 10.0), (40, 31.0), (41, 32.0), (60, 80.0)):
            now[0] = seconds
            show(steps, f"step {steps}")
    assert terminal.lines == ["step 40, 1 min 33 s left", "step 60, 1 min 20 s left"]


def test_a_report_has_a_picture_of_each_class_to_classify(tiny: Dataset, tmp_path: Path):
    """Each has its own pixels and its class's name; equal or impossible file names are changed."""
    count = len(tiny.labels)
    labels = ("a/b", "a b", "..", *tiny.labels[3:])
    named = replace(tiny, labels=labels)
    paths = write_samples(tmp_path / "samples", named)
    present = [index for index in range(count) if index in tiny.test_labels.tolist()]
    assert len(set(paths)) == len(paths) == len(present)
    assert {path.parent for path in paths} == {tmp_path / "samples"}
    assert (tmp_path / "samples" / "a-b.png").exists() == (0 in present)
    for index, path in zip(present, paths, strict=True):
        with Image.open(path) as picture:
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        first = tiny.test_images[tiny.test_labels.tolist().index(index)]
        assert torch.equal(pixels, first.permute(1, 2, 0).flatten())
