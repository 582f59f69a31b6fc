"""The epoch that is kept: the best one, or the last that is as good within chance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.choosing.summary import summarize
from foldserve.training.config import TrainConfig
from foldserve.training.run.epoch_choice import EpochChoice, wilson_lower_bound
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal


def kept(figures: list[float], counts: list[int], **settings: object) -> int:
    """Return the epoch, from 1, that is kept of a run with these figures and images per class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    choice = EpochChoice(TrainConfig.model_validate(settings), labels)
    return max(end for end in range(1, len(figures) + 1) if choice.keeps_last(figures[:end]))


def test_without_a_margin_the_best_is_kept_and_of_equal_ones_the_last() -> None:
    assert kept([0.5, 0.9, 0.8, 0.9, 0.89], [20]) == 4


def test_with_few_images_the_last_that_is_as_good_within_chance_is_kept() -> None:
    """Of 40 images, one standard error at 90 % is 5.8 points (Wilson), of 4,000 it is half a point."""
    figures = [0.5, 0.9, 0.8, 0.85, 0.84]
    assert kept(figures, [40], select_within=1) == 4
    assert kept(figures, [4000], select_within=1) == 2
    assert kept(figures, [40], select_within=2) == 5


def test_a_run_that_gets_worse_keeps_what_it_had() -> None:
    assert kept([0.8, 0.9, 0.6, 0.5, 0.1], [40], select_within=1) == 2


def test_macro_f1_is_less_certain_if_a_class_has_few_images() -> None:
    figures = [0.5, 0.9, 0.8]
    settings = {"select_within": 1, "select": "macro-f1"}
    assert kept(figures, [30, 30], **settings) == 2
    assert kept(figures, [59, 1], **settings) == 3


@given(st.floats(0, 1), st.floats(1, 1e6), st.floats(0, 5), st.floats(0, 5))
def test_the_bound_is_a_share_below_the_figure_and_falls_with_the_errors(
    share: float, count: float, one: float, other: float
) -> None:
    few, many = sorted((one, other))
    low, high = (wilson_lower_bound(share, count, errors) for errors in (many, few))
    assert -1e-9 <= low <= high + 1e-9
    assert high <= share + 1e-9


def test_the_bound_is_the_score_interval_by_its_definition() -> None:
    """The lower end is the share from which the figure is so many of its own standard errors away."""
    bound = wilson_lower_bound(0.9, 50, 1.5)
    assert (0.9 - bound) / math.sqrt(bound * (1 - bound) / 50) == pytest.approx(1.5)


def test_a_run_keeps_the_chosen_weights_and_the_list_of_runs_shows_their_figures(
    tiny_config: TrainConfig,
) -> None:
    """Without a margin and with a wide one."""
    for within in (0.0, 5.0):
        run = tiny_config.run_dir / str(within)
        config = tiny_config.model_copy(
            update={"run_dir": run, "select_within": within, "lr": 0.3, "epochs": 6}
        )
        terminal = LineTerminal()
        assert train(config, terminal) == 0
        best, last = load_checkpoint(run / "best.pt"), load_checkpoint(run / "last.pt")
        summary = summarize(run)
        figures = [record["validation_accuracy"] for record in summary.history]
        good = [
            end
            for end in range(1, len(figures) + 1)
            if figures[end - 1] >= wilson_lower_bound(max(figures[:end]), 40, within)
        ]
        assert summary.best is not None
        assert summary.best["epoch"] == best.metrics["epoch"] == summary.chosen_epoch == good[-1]
        is_same = all(torch.equal(best.weights[name], last.weights[name]) for name in best.weights)
        assert is_same == (best.metrics["epoch"] == len(figures))
        words = "the last within 5 standard errors of the best" if within else "the best"
        assert f"of epoch {best.metrics['epoch']}, {words} in validation" in terminal.lines[-1]
