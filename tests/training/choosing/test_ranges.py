"""The ranges of a search: read from the command line, and refused if no training could have their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from foldserve.training.choosing.config import TuneConfig
from foldserve.training.choosing.ranges import SEARCHABLE, Range, parse_ranges
from foldserve.training.config import TrainConfig
from foldserve.training.settings_file import ENDING_FIELDS, RESUMABLE_FIELDS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.01:0.3:log", Range("lr", "float", 0.01, 0.3, log=True)),
        ("weight-decay=0:1e-3", Range("weight_decay", "float", 0, 0.001)),
        ("crop-padding=0:4", Range("crop_padding", "int", 0, 4)),
        ("optimizer=sgd/adamw", Range("optimizer", "choice", choices=("sgd", "adamw"))),
        ("batch-size=32/64", Range("batch_size", "choice", choices=("32", "64"))),
        ("flip=true/false", Range("flip", "choice", choices=("true", "false"))),
        ("border=mirror/black", Range("border", "choice", choices=("mirror", "black"))),
    ],
)
def test_a_range_is_read_and_written_alike(text: str, expected: Range) -> None:
    assert parse_ranges([text]) == (expected,)
    assert parse_ranges([str(expected)]) == (expected,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr", "expected NAME=LOW:HIGH"),
        ("lr=", "expected NAME=LOW:HIGH"),
        ("lr=0.1", "expected NAME=LOW:HIGH"),
        ("lr=a:b", "expected NAME=LOW:HIGH"),
        ("lr=0.1:0.2:linear", "expected NAME=LOW:HIGH"),
        ("lr=0.1:0.2:log:log", "expected NAME=LOW:HIGH"),
        ("lr=0.3:0.1", "a number and a larger one"),
        ("lr=0.1:0.1", "a number and a larger one"),
        ("lr=0.1:inf", "a number and a larger one"),
        ("lr=nan:1", "a number and a larger one"),
        ("lr=0:1", "greater than 0"),
        ("weight-decay=0:1:log", "begins above 0"),
        ("dropout=0:1", "less than 1"),
        ("crop-padding=0:1.5", "whole numbers"),
        ("optimizer=sgd/adm", "'sgd' or 'adamw'"),
        ("optimizer=sgd", "leaves no choice"),
        ("optimizer=sgd//adamw", "empty or doubled"),
        ("optimizer=sgd/sgd", "empty or doubled"),
        ("learning-rat=0:1", "no setting to search"),
        ("weight-decai=0:1", "did you mean weight-decay?"),
        ("epochs=1:9", "no setting to search"),
        ("seed=1:9", "no setting to search"),
    ],
)
def test_a_bad_range_is_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"=|no setting") as refused:
        parse_ranges([text])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("batch-size=64/128", 128, "128"),
        ("lr=0.10/0.01", 0.1, "0.10"),
        ("batch-norm=True/False", True, "True"),
        ("flip=true/false", None, None),
        ("optimizer=sgd/adamw", "adamw", "adamw"),
        ("lr=0.01:0.3", 0.1, 0.1),
        ("lr=0.2:0.3", 0.1, None),
        ("batch-size=64/96", 128, None),
    ],
)
def test_the_usual_value_is_drawn_as_it_was_written(text: str, value: object, expected: object) -> None:
    (found,) = parse_ranges([text])
    assert found.drawn_as(value) == expected


def test_two_ranges_of_one_setting_are_refused() -> None:
    with pytest.raises(ValueError, match="lr has two ranges"):
        parse_ranges(["lr=0.1:0.2", "lr=0.2:0.3"])


def test_what_says_where_or_how_long_a_run_trains_is_not_searched() -> None:
    assert not SEARCHABLE & (RESUMABLE_FIELDS | ENDING_FIELDS | {"seed", "dataset", "validation_count"})
    assert TrainConfig.model_fields.keys() >= SEARCHABLE


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(0, 1))
def test_a_chosen_number_has_few_digits_and_stays_in_its_range(one: float, other: float, at: float) -> None:
    low, high = sorted((one, other))
    number = Range("lr", "float", low, high).rounded(low + at * (high - low))
    assert low <= number <= high
    assert number in (low, high, float(f"{number:.4g}"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.1, "range": ("lr=0.1:0.2",)}, "--lr has a value and a range"),
        ({"resume": True}, "no run to go on with"),
        ({"preview": "a.png"}, "--preview is for"),
        ({"deterministic": True, "jobs": 2}, "--deterministic needs --jobs 1"),
        ({"trials": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_a_search_are_refused(
    settings: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the checkout may have runs, as `make demo` leaves them
    with pytest.raises(ValidationError) as refused:
        TuneConfig.model_validate(settings)
    assert said in str(refused.value)


def test_settings_with_a_value_are_not_searched() -> None:
    config = TuneConfig.model_validate({"lr": "0.05", "arch": "lenet"})
    assert "lr" not in {each.name for each in config.ranges}
    assert config.fixed == {"lr": 0.05, "arch": "lenet"}
    assert str(config.folder) == "runs/tune-lenet"
