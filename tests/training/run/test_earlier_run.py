"""A run folder that an earlier version wrote loads, resumes and gives the same inputs to export.

``data/earlier_run`` holds the first of two epochs of a narrow resnet on the data set "tiny", interrupted in
the second one, with everything in use that has state or mixes images. Network outputs and figures below are
those of the version that wrote it. They may differ in the last digits on another CPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.imaging import ImageSpec
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.run import finishing
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.datasets import Dataset

EARLIER_RUN = Path(__file__).parents[1] / "data" / "earlier_run"
# As given on the command line then; all else is a default or of the recipe.
SETTINGS = {
    "arch": "resnet",
    "width": 0.125,
    "dataset": "tiny",
    "epochs": 2,
    "batch_size": 32,
    "accumulate": 2,
    "lr": 0.1,
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "mixup": 0.5,
    "cutmix": 1.0,
    "dropout": 0.1,
    "validation_count": 40,
    "deterministic": True,
    "precision": "fp32",
}
# Logits of two ramps of pixel values, of the weights that are exported.
LOGITS_AFTER_EPOCH_1 = [
    [-0.13901269, -0.07035913, -0.16844076, -0.14111297],
    [-0.13553208, -0.06938581, -0.17065178, -0.13866910],
]
LOGITS_AFTER_EPOCH_2 = [
    [-0.05841024, -0.11405348, -0.20187980, -0.05522900],
    [-0.02789825, -0.15159070, -0.22237083, -0.02481675],
]


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    pixels = (torch.arange(2 * 28 * 28) % 256).to(torch.uint8).reshape(2, 1, 28, 28)
    with torch.inference_mode():
        answer: torch.Tensor = checkpoint.build()(pixels)
    return answer


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_an_earlier_checkpoint_loads_with_all_that_export_takes(name: str):
    checkpoint = load_checkpoint(EARLIER_RUN / name)
    assert checkpoint.arch == "resnet"
    assert checkpoint.arch_args == {
        "in_channels": 1,
        "class_count": 4,
        "height": 28,
        "width": 28,
        "batch_norm": True,
        "activation": "relu",
        "dropout": 0.1,
        "width_factor": 0.125,
    }
    assert checkpoint.image == ImageSpec("L", 28, 28, resize_shorter_side=28)
    assert (checkpoint.mean, checkpoint.std) == ((0.312291,), (0.233505,))
    assert checkpoint.labels == ("north", "east", "south", "west")
    assert (checkpoint.dataset, checkpoint.fingerprint) == ("tiny", "")
    assert checkpoint.weights_kind == "ema"
    assert checkpoint.metrics["validation_accuracy"] == 0.325
    assert (checkpoint.trainer is None) == (name == "best.pt")
    torch.testing.assert_close(logits(checkpoint), torch.tensor(LOGITS_AFTER_EPOCH_1), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_an_earlier_run_resumes_to_the_weights_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)
    folder = tmp_path / "run"
    shutil.copytree(EARLIER_RUN, folder)
    terminal = LineTerminal()
    train(TrainConfig(**SETTINGS, run_dir=folder, device="cpu"), terminal)
    assert f"resuming {folder} in epoch 2 of 2 at step 5 of 10" in terminal.lines
    best = load_checkpoint(folder)
    # Five steps in float32 on another CPU: far below what a step of another rate or another loss changes.
    torch.testing.assert_close(logits(best), torch.tensor(LOGITS_AFTER_EPOCH_2), rtol=0, atol=1e-4)
    expected = {
        "epoch": 2,
        "step": 10,
        "lr": 0.0030153690,
        "train_loss": 1.3929766,
        "validation_loss": 1.3775874,
        "test_loss": 1.3956301,
    }
    assert {name: best.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert (best.image.decode, best.image.fit) == ("full", "shorter-side"), "the rules it was trained by"


@pytest.mark.usefixtures("tiny_config")
def test_a_checkpoint_is_written_with_the_fields_it_had_earlier(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)
    folder = tmp_path / "run"
    train(TrainConfig(**SETTINGS | {"dataset": tiny.name}, run_dir=folder, device="cpu"), LineTerminal())
    for name in ("best.pt", "last.pt"):
        earlier, now = (torch.load(place / name, weights_only=True) for place in (EARLIER_RUN, folder))
        since = {
            "metrics": now["metrics"],
            "group_by": "",
            "path_column": "",
            "label_column": "",
            "image": {**earlier["image"], "decode": "scaled", "fit": "crop"},
        }
        assert _form(now) == _form(earlier) | _form(since)
        assert now["image"] == since["image"]
    for name in ("config.json", "metrics.jsonl"):
        assert (folder / name).exists()


def _form(value: object) -> object:
    """Return ``value`` with types in place of values, so that two checkpoints compare by their keys."""
    if isinstance(value, dict):
        return {key: _form(inner) for key, inner in value.items()}
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape)
    return type(value)
