"""Provides a small data set that LeNet learns in seconds, under the name "tiny"."""

from __future__ import annotations

import pwd
from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.imaging import ImageSpec
from foldserve.terminal import Terminal
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import Dataset, registry

if TYPE_CHECKING:
    from pathlib import Path

_LABELS = ("north", "east", "south", "west")


class LineTerminal(Terminal):
    """Records the lines; can stop the run at one of them, as if the process was killed."""

    def __init__(self, stop_at: str | None = None) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._stop_at = stop_at

    def say(self, line: str) -> None:
        self.lines.append(line)
        if self._stop_at is not None and self._stop_at in line:
            raise KeyboardInterrupt


def take_home_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove HOME and the user's entry, as in a container that is given a user id."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_entry(_user: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", no_entry)


def make_examples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise with one bright quarter, whose position is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randint(0, 100, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        top, left = 14 * (label // 2), 14 * (label % 2)
        images[index, :, top : top + 14, left : left + 14] += 120
    return images, labels


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    train_images, train_labels = make_examples(200, seed=1)
    test_images, test_labels = make_examples(40, seed=2)
    dataset = Dataset(
        name="tiny",
        labels=_LABELS,
        image=ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28),
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        flip_keeps_class=False,
    )
    monkeypatch.setitem(registry.DATASETS, "tiny", lambda _folder, _terminal: dataset)
    return dataset


@pytest.fixture
def tiny_config(tiny: Dataset, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        dataset="tiny",
        run_dir=tmp_path / "run",
        epochs=3,
        batch_size=32,
        lr=0.02,
        validation_count=40,
        erase_probability=0.0,
        deterministic=True,
        device="cpu",
    )


@pytest.fixture(autouse=True)
def _restore_determinism():
    """Undo what `train` sets for its process, which other tests share."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)
