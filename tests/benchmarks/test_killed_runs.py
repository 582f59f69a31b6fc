"""The comparison of a killed run with an undisturbed one finds a single bit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.killed_runs.same_bits import differences
from foldserve.training.checkpoint import load_checkpoint, save_checkpoint

EARLIER_RUN = Path(__file__).parents[1] / "training" / "data" / "earlier_run"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return EARLIER_RUN, shutil.copytree(EARLIER_RUN, tmp_path / "other")


def test_equal_runs_do_not_differ(runs: tuple[Path, Path]) -> None:
    assert differences(*runs) == []


@pytest.mark.parametrize(
    ("file", "what"), [("best.pt", "weights"), ("last.pt", "ema_weights"), ("last.pt", "trainer")]
)
def test_one_bit_is_found(runs: tuple[Path, Path], file: str, what: str) -> None:
    checkpoint = load_checkpoint(runs[1] / file)
    values = getattr(checkpoint, what)
    place = values["optimizer"]["state"][0] if what == "trainer" else values
    name = next(name for name, value in place.items() if value.is_floating_point())
    changed = place[name].clone().flatten()
    changed.view(torch.int32)[0] ^= 1
    place[name] = changed.view(place[name].shape)
    save_checkpoint(runs[1] / file, dataclasses.replace(checkpoint, **{what: values}))
    (found,) = differences(*runs)
    assert found.startswith(f"{file}: {what}.")
    assert found.endswith(name)


def test_zeros_of_another_sign_are_found(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for sign, run in ((1.0, tmp_path / "first"), (-1.0, tmp_path / "second")):
        shutil.copytree(runs[0], run)
        checkpoint = load_checkpoint(run / "best.pt")
        weights = {name: sign * torch.zeros_like(value) for name, value in checkpoint.weights.items()}
        save_checkpoint(run / "best.pt", dataclasses.replace(checkpoint, weights=weights))
    assert differences(tmp_path / "first", tmp_path / "second")


def test_other_figures_are_found_and_other_times_are_not(runs: tuple[Path, Path]) -> None:
    file = runs[1] / "metrics.jsonl"
    text = file.read_text()
    file.write_text(text.replace('"train_s": ', '"train_s": 1'))
    assert differences(*runs) == []
    file.write_text(text.replace('"train_loss": ', '"train_loss": 1'))
    assert differences(*runs) == ["metrics.jsonl: 1 and 1 epochs, or other figures"]
