"""The rows of the benchmark of small data are kept while the rule is the same, and say where it is behind."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.small_data.drawn import glyphs, scenes, textures
from benchmarks.small_data.image_folder import DataUnavailableError, write_folder
from benchmarks.small_data.rows import RULE, Row, append_row, read_rows
from benchmarks.small_data.table import print_table, verdict
from benchmarks.small_data.tried import TRIED
from foldserve.training.config import TrainConfig
from foldserve.training.folder_recipe import choose_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def row(settings: str = RULE, **facts: Any) -> Row:
    usual: dict[str, Any] = {
        "data": "digits",
        "arch": "lenet",
        "settings": settings,
        "chosen": choose_settings("lenet", "default", 1080, 32),
        "side": 32,
        "classes": 10,
        "train_count": 1080,
        "test_count": 597,
        "largest_class": 0.1,
        "steps": 2013,
        "took_s": 60.0,
        "validation_accuracy": 0.97,
        "test_accuracy": 0.95,
        "test_macro_f1": 0.95,
    }
    return Row(**usual | facts)


def test_rows_come_back_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    file = tmp_path / "build" / "rows.jsonl"
    assert read_rows(file) == {}
    for each in (row(), row("lr0.1", test_accuracy=0.5), row("lr0.1", test_accuracy=0.6)):
        append_row(file, each)
    rows = read_rows(file)
    assert rows["digits", "lenet", RULE] == row()
    assert rows["digits", "lenet", "lr0.1"].test_accuracy == 0.6
    file.write_text("{}\n")
    with pytest.raises(SystemExit, match="line 1 is no row of this benchmark"):
        read_rows(file)


def test_rows_of_another_rule_are_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    other = choose_settings("lenet", "default", 1080, 32) | {"lr": 0.3}
    append_row(file, row(chosen=other))
    append_row(file, row("by hand", chosen=other))
    assert read_rows(file).keys() == {("digits", "lenet", "by hand")}


@pytest.mark.parametrize(
    ("rule", "by_hand", "said", "is_flagged"),
    [
        (0.95, [], "", False),
        (0.97, [], "", False),
        (0.985, [], "-1.5 at worst", False),
        (0.95, [(0.99, 0.96), (0.90, 0.99)], "-1.0", False),
        (0.95, [(0.99, 0.975), (0.90, 0.99)], "-2.5 BEHIND", True),
        (0.95, [(0.99, 0.90)], "+5.0", False),
        (0.11, [(0.99, 0.90)], "AT CHANCE", True),
        (0.11, [], "AT CHANCE", True),
    ],
)
def test_the_rule_is_compared_with_the_trial_that_is_best_in_validation(
    rule: float,
    by_hand: list[tuple[float, float]],
    said: str,
    *,
    is_flagged: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trials = [
        row(f"trial {number}", validation_accuracy=validation, test_accuracy=test)
        for number, (validation, test) in enumerate(by_hand)
    ]
    best, difference, flagged = verdict(row(test_accuracy=rule), trials)
    assert (difference, flagged) == (said, is_flagged)
    assert best is None or best.validation_accuracy == 0.99
    rows = {each.key: each for each in [row(test_accuracy=rule), *trials]}
    assert print_table(rows, ["digits", "icons"], ["lenet", "resnet"]) == is_flagged
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3, "one line per data set and network that has a row of the rule"
    assert said in printed[2]


@pytest.mark.parametrize(("images", "count"), [(glyphs, 20), (textures, 25), (scenes, 20)])
def test_drawn_images_repeat_and_are_split(
    tmp_path: Path, images: Callable[[int], Iterator[Any]], count: int
) -> None:
    try:
        first, again = ([*islice(images(count), count + 30)] for _ in range(2))
    except DataUnavailableError as error:
        pytest.skip(str(error))
    for (*facts, one), (*same, two) in zip(first, again, strict=True):
        assert facts == same
        assert np.array_equal(np.asarray(one), np.asarray(two))
    assert sum(split == "train" for split, *_ in first) == pytest.approx(count, abs=4)
    folder = write_folder(tmp_path / "data", iter(first))
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(first)
    assert not list(tmp_path.glob(".*"))


def test_trials_are_ten_that_training_takes() -> None:
    assert len({trial.name for trial in TRIED}) == 10
    for trial in TRIED:
        flags = dict(flag.lstrip("-").partition("=")[::2] for flag in trial.flags(1080))
        augment = flags.pop("no-augment", None)
        settings = {name.replace("-", "_"): value for name, value in flags.items()}
        config = TrainConfig(**settings, augment=augment is None)
        assert config.epochs * (1080 // config.batch_size) == pytest.approx(trial.steps, abs=17)
