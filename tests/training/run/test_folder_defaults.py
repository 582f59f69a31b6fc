"""`train --dataset FOLDER` alone: what is found and chosen is said, recorded, and gone on with."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from foldserve.imaging import ImageSpec
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import load_dataset
from foldserve.training.errors import DatasetError, RunError
from foldserve.training.run import finishing
from foldserve.training.run.train import train
from tests.support.image_folders import LABELS, write_classes
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pictures", per_class=20, size=(30, 40))


def asked(folder: Path, **settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {"dataset": str(folder), "run_dir": folder.parent / "run", "device": "cpu"} | settings
    )


def train_lines(config: TrainConfig, stop_at: str | None = None) -> list[str]:
    terminal = LineTerminal(stop_at)
    if stop_at is None:
        train(config, terminal)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(config, terminal)
    return terminal.lines


def recorded(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder.parent / "run" / "config.json").read_text())
    return settings


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        pytest.param({}, 900, id="the rule's"),  # half of 600 epochs of 3 steps
        pytest.param({"auto_augment": "trivial"}, 0, id="asked for"),
        pytest.param({"auto_augment_steps": 7}, 7, id="given"),
    ],
)
def test_a_policy_that_is_asked_for_is_used_in_however_few_steps(
    folder: Path, settings: dict[str, Any], least: int
):
    train_lines(asked(folder, **settings), stop_at="epoch   1/600")
    assert recorded(folder)["auto_augment"] == "trivial"
    assert recorded(folder)["auto_augment_steps"] == least


def test_what_is_found_and_chosen_is_said(folder: Path):
    lines = "\n".join(train_lines(asked(folder), stop_at=" into "))
    assert "images are used as grey, 40x30 pixels; the files are 80 PNG, 40x30 pixels" in lines
    assert re.search(r"58 images for training \(east 1\d, .*\), 6 for validation, 16 for the test", lines)
    assert "images are not mirrored: the nearest other image is of the same class for" in lines
    assert "chosen for 58 images of 30 pixels: arch resnet, batch-size 16, epochs 600, " in lines
    assert "training resnet (" in lines


def test_each_choice_can_be_given(folder: Path):
    config = asked(
        folder, arch="lenet", lr=0.5, epochs=1, flip=True, dropout=0.4, batch_size=8, optimizer="adamw"
    )
    lines = "\n".join(train_lines(config, stop_at=" into "))
    chosen = next(line for line in lines.splitlines() if line.startswith("chosen"))
    for name in ("arch", "lr", "epochs", "flip", "dropout", "batch-size", "optimizer"):
        assert f" {name} " not in chosen
    assert "training lenet (" in lines


def test_what_was_chosen_is_recorded_and_gone_on_with(folder: Path):
    """Also if the rule would choose otherwise now, as a later version may."""
    config = asked(folder, epochs=2, arch="lenet", deterministic=True)
    train_lines(config, stop_at="epoch 1/2")
    settings = recorded(folder)
    assert settings["batch_size"] == 16
    assert settings["flip"] is False
    assert settings["image_size"] is None, "not square: their own size"
    assert settings["validation_count"] == 6
    file = folder.parent / "run" / "config.json"
    train_lines(config)
    assert recorded(folder) == settings
    assert load_checkpoint(folder.parent / "run").labels == ("east", "north", "south", "west")
    file.write_text(json.dumps(settings | {"clip_norm": 1.25}))
    assert "is finished" in train_lines(config)[-1]


def test_a_run_goes_on_whatever_its_images_are_called_and_from_any_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder.parent)
    settings = {"epochs": 2, "arch": "lenet", "class_weights": "weights.json"}
    (folder.parent / "weights.json").write_text(json.dumps(dict.fromkeys(LABELS, 1)))
    train_lines(asked(folder, **settings, dataset="pictures"), stop_at="epoch 2/2")
    resuming = f"resuming {folder.parent / 'run'} in epoch 2 of 2"
    for name in ("pictures", "pictures/", "./pictures", "../" + folder.parent.name + "/pictures", folder):
        train_lines(asked(folder, **settings, dataset=str(name)), stop_at=resuming)
    there = recorded(folder)
    assert there["dataset"] == str(folder)
    again = {"run_dir": folder.parent / "run", "resume": True, "device": "cpu"}
    file = folder.parent / "run" / "config.json"
    earlier = there | {"dataset": "pictures", "class_weights": "weights.json"}
    for settings_there, place in ((there, "/"), (earlier, folder.parent)):
        file.write_text(json.dumps(settings_there))
        monkeypatch.chdir(place)
        train_lines(TrainConfig.model_validate(again), stop_at=resuming)
    with pytest.raises(RunError, match=r"dataset is .*/pictures there and .*/others here"):
        train(asked(folder, **settings, dataset="others"), LineTerminal())


def test_a_run_goes_on_with_images_that_have_moved(folder: Path):
    """The twin: other images in the new place."""
    train_lines(asked(folder, epochs=2, arch="lenet"), stop_at="epoch 2/2")
    moved = folder.rename(folder.with_name("moved"))
    again = {"run_dir": folder.parent / "run", "resume": True, "device": "cpu", "data_dir": moved}
    resuming = f"resuming {folder.parent / 'run'} in epoch 2 of 2"
    train_lines(TrainConfig.model_validate(again), stop_at=resuming)
    (moved / "east" / "000.png").rename(moved / "east" / "moved.png")
    with pytest.raises(RunError, match="the run cannot be resumed"):
        train(TrainConfig.model_validate(again), LineTerminal())


def test_a_run_at_chance_is_warned_of_with_what_to_try(folder: Path):
    """At this rate nothing is learnt in one epoch."""
    lines = train_lines(asked(folder, epochs=1, lr=1e-9, arch="lenet"))
    (warning,) = [line for line in lines if "no better than always naming the largest class" in line]
    assert "Try a lower rate (--lr 1e-10), more --epochs (now 1)" in warning
    metrics = load_checkpoint(folder.parent / "run").metrics
    assert (metrics["test_images"], metrics["test_largest_class"]) == (16, 0.25)


def test_copies_across_the_split_are_told(folder: Path):
    for label in ("east", "north"):
        for number in range(20, 30):
            shutil.copy(folder / label / f"{number - 20:03}.png", folder / label / f"{number:03}.png")
    lines = "\n".join(train_lines(asked(folder), stop_at=" into "))
    assert "test images are nearly the same as one in training: the accuracy will be too high" in lines


def test_unequal_classes_are_told_unless_they_are_taken_care_of(folder: Path):
    for path in list((folder / "east").iterdir())[3:]:
        path.unlink()
    for settings, told in (
        ({}, True),
        ({"sampler": "balanced"}, False),
        ({"class_weights": "balanced"}, False),
    ):
        lines = "\n".join(train_lines(asked(folder, **settings), stop_at=" into "))
        assert ("times as many images as the smallest: if all classes matter the same, try" in lines) == told


@pytest.mark.parametrize("group_by", ["folder", r"/(g\d+)_", r"g\d+"])
def test_groups_are_on_one_side_of_each_split(tmp_path: Path, group_by: str):
    """The export finds the same test images again."""
    folder = tmp_path / "grouped"
    source = write_classes(tmp_path / "pictures", per_class=40)
    for label in ("east", "north", "south", "west"):
        for number in range(40):
            group = number // 5
            place = folder / label / (f"g{group}" if group_by != r"/(g\d+)_" else "all")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / label / f"{number:03}.png", place / f"g{group}_{number:03}.png")
    dataset = load_dataset(str(folder), group_by=group_by)
    assert dataset.train_groups is not None
    count = 32 if group_by == "folder" else 8
    assert len(dataset.test_labels) >= 16
    assert len(dataset.train_groups.unique()) < count
    assert len(dataset.test_labels) + len(dataset.train_labels) == 160
    config = asked(folder, group_by=group_by, epochs=1, arch="lenet", batch_size=32, lr=0.02)
    train_lines(config)
    best = load_checkpoint(tmp_path / "run")
    assert best.group_by == group_by
    again = load_dataset(best.dataset, image=best.image, group_by=best.group_by)
    assert torch.equal(again.test_images, dataset.test_images)
    assert not torch.equal(again.test_images, load_dataset(best.dataset, image=best.image).test_images)


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("(", r"--group-by \( is not a regular expression"),
        ("x", r"--group-by x finds no group in 80 of 80 paths: east/000\.png"),
        ("((?:north|south)/.*)?000", r"--group-by .* finds no group in 78 of 80 paths: east/000\.png"),
        ("folder", r"--group-by makes 4 groups of 80 images, none of which can be held out"),
    ],
)
def test_groups_that_make_no_split_are_refused(folder: Path, group_by: str, message: str):
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(folder), group_by=group_by)
    with pytest.raises(DatasetError, match="group-by is for folders of images"):
        load_dataset("fashion-mnist", group_by=group_by)


def test_groups_of_pictures_that_are_all_broken_are_refused(folder: Path):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    image = ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28)
    with pytest.raises(DatasetError, match="no readable"):
        load_dataset(str(folder), group_by=r"\d", skip_broken=True, image=image)
