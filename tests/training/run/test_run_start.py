"""The messages at the start of a run: classes, counts, splits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.training.datasets import registry
from foldserve.training.errors import DatasetError, RunError
from foldserve.training.run.train import train
from tests.support.image_folders import write_classes
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset


def lines_until_training(config: TrainConfig) -> list[str]:
    terminal = LineTerminal(f"into {config.run_dir}")
    with pytest.raises(KeyboardInterrupt):
        train(config, terminal)
    return terminal.lines


def test_counts_of_each_split_and_class_are_reported(tiny_config: TrainConfig):
    (line, _) = lines_until_training(tiny_config)
    assert line.startswith("160 images for training (north ")
    assert line.endswith(", 40 for validation, 40 for the test")


def test_of_many_classes_the_rarest_and_the_most_frequent_are_reported(
    tiny_config: TrainConfig, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
):
    labels = tuple(f"class {index}" for index in range(30))
    many = replace(tiny, labels=labels, train_labels=torch.arange(200) % 30)
    monkeypatch.setitem(registry.DATASETS, "tiny", lambda _folder, _terminal: many)
    (counts, untested, _) = lines_until_training(tiny_config)
    assert "(30 classes, class " in counts
    assert untested.startswith("no test images of class 4, class 5, class 6 and 23 more: ")


def test_a_folder_with_all_three_splits_takes_no_count_for_validation(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 9), ("val", 2), ("test", 3)):
        write_classes(tmp_path / "p" / split, per_class=count)
    config = tiny_config.model_copy(update={"dataset": str(tmp_path / "p"), "validation_count": None})
    assert any(
        line == "36 images for training (east 9, north 9, south 9, west 9), 8 for validation, 12 for the test"
        for line in lines_until_training(config)
    )
    with pytest.raises(DatasetError, match=r"--validation-count is 4, but .* leave it out"):
        train(config.model_copy(update={"validation_count": 4}), LineTerminal())


def test_a_finished_run_on_images_that_changed_is_refused(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_classes(tmp_path / "p", per_class=8)
    config = tiny_config.model_copy(
        update={"dataset": str(folder), "validation_count": 4, "batch_size": 8, "epochs": 1}
    )
    for _ in range(2):
        terminal = LineTerminal()
        assert train(config, terminal) == 0
    assert "is finished: " in terminal.lines[-1]
    north, south, aside = folder / "north" / "000.png", folder / "south" / "000.png", tmp_path / "aside"
    for source, target in ((north, aside), (south, north), (aside, south)):
        source.rename(target)
    with pytest.raises(RunError, match=r"has a finished run on other images than .* use another --run-dir"):
        train(config, LineTerminal())
    shutil.rmtree(folder)
    assert train(config, terminal) == 0
