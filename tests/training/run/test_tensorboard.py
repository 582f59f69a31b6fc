"""The figures of a run for TensorBoard, with a writer that records its calls."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from foldserve.training.run import finishing
from foldserve.training.run import tensorboard as tensorboard_module
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.config import TrainConfig


class RememberingWriter:
    """Records the calls of `torch.utils.tensorboard.SummaryWriter`."""

    opened: list[RememberingWriter]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.is_closed = False
        self.opened.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, float(value), step))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[RememberingWriter]:
    module = ModuleType("torch.utils.tensorboard")
    RememberingWriter.opened = []
    module.SummaryWriter = RememberingWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(tensorboard_module, "find_spec", lambda _name: object())
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)
    return RememberingWriter.opened


def test_each_epochs_figures_are_logged_at_their_step_and_a_resumed_run_goes_on_there(
    tiny_config: TrainConfig, writers: list[RememberingWriter]
):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, LineTerminal("epoch 3/3"))
    train(tiny_config, LineTerminal())
    broken, resumed = writers
    assert (broken.purge_step, resumed.purge_step) == (0, 10)
    assert broken.folder == resumed.folder == str(tiny_config.run_dir / "tensorboard")
    assert broken.is_closed
    assert resumed.is_closed
    logged = broken.scalars + resumed.scalars
    assert [step for tag, _, step in logged if tag == "accuracy/validation"] == [5, 10, 15]
    assert {"loss/train", "loss/validation", "accuracy/train", "step_loss/train", "run/lr"} <= {
        tag for tag, _, _ in logged
    }


def test_without_tensorboard_there_is_no_folder_for_it(
    tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(tensorboard_module, "find_spec", lambda _name: None)
    with tensorboard_module.tensorboard_log(tmp_path / "log", 0, is_on=True) as log:
        log({"lr": 0.1}, 1)
    assert not (tmp_path / "log").exists()
