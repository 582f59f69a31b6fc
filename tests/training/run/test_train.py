"""`foldserve train` from settings to report: repeatable, resumable, and clear about what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from pydantic import ValidationError

from foldserve.errors import DeviceError
from foldserve.imaging import ImageSpec
from foldserve.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import registry
from foldserve.training.errors import DivergedError, RunError
from foldserve.training.run import finishing, saver
from foldserve.training.run import train as run_module
from foldserve.training.run.run_folder import open_run_folder
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.datasets import Dataset


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which takes longer than training here and is tested elsewhere."""
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)


def train_lines(config: TrainConfig) -> list[str]:
    terminal = LineTerminal()
    assert train(config, terminal) == 0
    return terminal.lines


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = (load_checkpoint(folder / "last.pt") for folder in (first, second))
    for mine, other in ((one.weights, two.weights), (one.ema_weights or {}, two.ema_weights or {})):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def changed(config: TrainConfig, **settings: object) -> TrainConfig:
    return TrainConfig(**config.model_dump() | settings)


def test_a_run_learns_and_writes_all_its_files(tiny_config: TrainConfig, tiny: Dataset):
    lines = train_lines(tiny_config)
    names = {
        str(path.relative_to(tiny_config.run_dir))
        for path in tiny_config.run_dir.rglob("*")
        if path.is_file()
    }
    assert names - {".lock"} == {
        "best.pt",
        "last.pt",
        "config.json",
        "metrics.jsonl",
        "report/report.html",
        "report/curves.png",
        "report/confusion_matrix.png",
        "report/class_accuracies.png",
        "report/mistakes.png",
        "report/predictions.csv",
        *(f"report/samples/{label}.png" for label in tiny.labels),
    }
    records = [json.loads(line) for line in (tiny_config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 5), (2, 10), (3, 15)]
    best = load_checkpoint(tiny_config.run_dir)
    assert best.metrics["test_accuracy"] > 0.9
    assert f"test accuracy {best.metrics['test_accuracy']:.2%}" in lines[-1]
    assert best.labels == tiny.labels
    with torch.no_grad():
        predictions = best.build()(tiny.test_images).argmax(dim=1)
    assert (predictions == tiny.test_labels).double().mean().item() == best.metrics["test_accuracy"]


@pytest.mark.usefixtures("no_pictures")
def test_best_is_the_epoch_of_the_highest_validation_accuracy(tiny_config: TrainConfig):
    train_lines(tiny_config)
    records = [json.loads(line) for line in (tiny_config.run_dir / "metrics.jsonl").read_text().splitlines()]
    best = load_checkpoint(tiny_config.run_dir).metrics
    assert best["validation_accuracy"] == max(record["validation_accuracy"] for record in records)
    assert records[best["epoch"] - 1]["validation_loss"] == best["validation_loss"]


@pytest.mark.usefixtures("no_pictures")
def test_the_test_images_are_read_once_at_the_end(
    tiny_config: TrainConfig, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
):
    judged = []

    def watch(model, examples, *process_group):
        judged.append("test" if examples.images is tiny.test_images else "validation")
        return evaluate(model, examples, *process_group)

    evaluate = run_module.evaluate
    for module in (run_module, finishing):
        monkeypatch.setattr(module, "evaluate", watch)
    train_lines(tiny_config)
    assert judged == ["validation"] * 3 + ["test"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("stop_at", "settings"),
    [
        pytest.param("epoch 1/3", {}, id="before the first checkpoint"),
        pytest.param("epoch 2/3", {}, id="in the second epoch"),
        pytest.param("epoch 3/3", {}, id="in the last epoch"),
        pytest.param("test accuracy", {}, id="while saying the result"),
        pytest.param(
            "epoch 3/3",
            {"ema_decay": 0.9, "dropout": 0.3, "optimizer": "adamw"},
            id="with all that has state",
        ),
        pytest.param("epoch 2/3", {"arch": "alexnet", "precision": "bf16"}, id="in bf16"),
    ],
)
def test_an_interrupted_run_resumes_and_ends_bit_identical(
    tiny_config: TrainConfig, tmp_path: Path, stop_at: str, settings: dict[str, object]
):
    whole = changed(tiny_config, **settings, run_dir=tmp_path / "whole")
    broken = changed(whole, run_dir=tmp_path / "broken")
    train_lines(whole)
    with pytest.raises(KeyboardInterrupt):
        train(broken, LineTerminal(stop_at))
    lines = train_lines(broken)
    # A run stopped while it says its result has already stored it; stopped at an epoch's line, it has not.
    resumed = [line for line in lines if "resuming" in line]
    assert bool(resumed) == (stop_at in ("epoch 2/3", "epoch 3/3"))
    if resumed:
        epoch = int(stop_at[6])
        assert resumed[0].endswith(f"in epoch {epoch} of 3 at step {5 * (epoch - 1)} of 15")
    assert_same_weights(whole.run_dir, broken.run_dir)
    one, two = load_checkpoint(whole.run_dir), load_checkpoint(broken.run_dir)
    timeless = one.metrics.keys() - {"images_per_s", "train_s"}
    assert {name: one.metrics[name] for name in timeless} == {name: two.metrics[name] for name in timeless}
    assert one.weights_kind == two.weights_kind == ("ema" if "ema_decay" in settings else "raw")
    records = (broken.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["epoch"] for record in records] == [1, 2, 3]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("saves", "where"),
    [
        pytest.param(1, "in epoch 1 of 3 at step 1 of 15", id="after the first step"),
        pytest.param(4, "in epoch 1 of 3 at step 4 of 15", id="before the first epoch's last step"),
        pytest.param(5, "in epoch 1 of 3 at step 4 of 15", id="between best and last"),
        pytest.param(6, "in epoch 2 of 3 at step 5 of 15", id="after an epoch"),
        pytest.param(9, "in epoch 2 of 3 at step 8 of 15", id="within an epoch"),
        pytest.param(-1, "after its last epoch at step 15 of 15", id="before the test images"),
    ],
)
def test_a_run_resumed_at_any_step_ends_bit_identical(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int, where: str
):
    """With all settings that have state; a checkpoint after each step, an interruption after some."""
    settings = {"ema_decay": 0.9, "dropout": 0.3, "mixup": 0.5, "cutmix": 1.0, "checkpoint_every": 0.0}
    whole = changed(tiny_config, **settings, run_dir=tmp_path / "whole")
    broken = changed(whole, run_dir=tmp_path / "broken")
    saved = []

    def count_saves(path: Path, checkpoint: Checkpoint) -> None:
        if len(saved) == stop_after:
            raise KeyboardInterrupt
        save_checkpoint(path, checkpoint)
        saved.append(path)

    stop_after = -1
    for module in (run_module, saver, finishing):
        monkeypatch.setattr(module, "save_checkpoint", count_saves)
    train_lines(whole)
    stop_after = saves % len(saved)  # -1: before the last save, of the checkpoint that holds the result
    saved.clear()
    with pytest.raises(KeyboardInterrupt):
        train(broken, LineTerminal())
    stop_after = -1
    lines = train_lines(broken)
    assert [line for line in lines if "resuming" in line] == [f"resuming {broken.run_dir} {where}"]
    assert_same_weights(whole.run_dir, broken.run_dir)
    assert_same_records(whole.run_dir, broken.run_dir)


def assert_same_records(first: Path, second: Path) -> None:
    """Check that the figures of all epochs agree, except for times; also of the interrupted epoch."""
    one, two = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (first, second)
    )
    for record in (*one, *two):
        del record["images_per_s"], record["train_s"]
    assert one == two


@pytest.mark.usefixtures("no_pictures")
def test_another_seed_gives_other_weights(tiny_config: TrainConfig, tmp_path: Path):
    """Counterpart of the bit-identical tests: their comparison can fail."""
    other = changed(tiny_config, seed=1, run_dir=tmp_path / "other")
    train_lines(tiny_config)
    train_lines(other)
    with pytest.raises(AssertionError):
        assert_same_weights(tiny_config.run_dir, other.run_dir)


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_is_reported_and_left_unchanged(tiny_config: TrainConfig):
    train_lines(tiny_config)
    before = {path: path.read_bytes() for path in tiny_config.run_dir.glob("*.*")}
    lines = train_lines(tiny_config)
    assert len(lines) == 1
    assert "is finished: test accuracy" in lines[0]
    assert {path: path.read_bytes() for path in tiny_config.run_dir.glob("*.*")} == before


@pytest.mark.usefixtures("no_pictures")
def test_other_settings_in_a_run_folder_are_named(tiny_config: TrainConfig):
    train_lines(tiny_config)
    with pytest.raises(
        RunError, match=r"lr is 0\.02 there and 0\.5 here, seed is 0 there and 3 here; use another"
    ):
        train(changed(tiny_config, lr=0.5, seed=3))


@pytest.mark.usefixtures("no_pictures")
def test_settings_can_change_until_a_checkpoint_is_written(tiny_config: TrainConfig):
    with pytest.raises(RunError, match="give a smaller one"):
        train(changed(tiny_config, batch_size=161), LineTerminal())
    train_lines(tiny_config)


@pytest.mark.usefixtures("no_pictures")
def test_a_moved_run_folder_can_be_resumed(tiny_config: TrainConfig):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, LineTerminal("epoch 2/3"))
    moved = tiny_config.run_dir.rename(tiny_config.run_dir.with_name("moved"))
    lines = train_lines(changed(tiny_config, run_dir=moved, threads=torch.get_num_threads()))
    assert any("resuming" in line for line in lines)


def test_a_damaged_last_checkpoint_is_refused_rather_than_started_over(tiny_config: TrainConfig):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, LineTerminal("epoch 2/3"))
    last = tiny_config.run_dir / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(
        RunError, match=r"the run cannot be resumed: .*last\.pt is not a checkpoint, or it is damaged"
    ):
        train(tiny_config, LineTerminal())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {
                "image": ImageSpec(channel_order="RGB", height=28, width=28, resize_shorter_side=28),
                "train_images": torch.zeros(200, 3, 28, 28, dtype=torch.uint8),
            },
            r"its checkpoint has image .*channel_order='L'.*, the data set now gives .*channel_order='RGB'.*",
            id="another number of channels",
        ),
        pytest.param(
            {"labels": ("north", "east", "south", "west", "up")},
            r"its checkpoint has labels .*'west'\), the data set now gives .*'up'\)",
            id="another number of classes",
        ),
    ],
)
def test_a_run_is_not_resumed_on_a_changed_data_set(
    tiny_config: TrainConfig,
    tiny: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    message: str,
):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, LineTerminal("epoch 2/3"))
    last = (tiny_config.run_dir / "last.pt").read_bytes()
    changed_set = replace(tiny, **changes)
    monkeypatch.setitem(registry.DATASETS, "tiny", lambda _folder, _terminal: changed_set)
    with pytest.raises(RunError, match=f"the run cannot be resumed: {message}; use another --run-dir"):
        train(tiny_config, LineTerminal())
    assert (tiny_config.run_dir / "last.pt").read_bytes() == last


def test_a_run_that_diverges_keeps_the_last_good_checkpoint(tiny_config: TrainConfig):
    """Each step would be saved; at this rate, the second or third one overflows float32."""
    config = changed(tiny_config, lr=1e20, warmup=0.0, checkpoint_every=0.0, batch_norm=False)
    with pytest.raises(
        DivergedError, match=r"no longer finite at step \d+ of 15 .*; the last good checkpoint is kept"
    ):
        train(config, LineTerminal())
    last = load_checkpoint(config.run_dir / "last.pt")
    assert last.trainer is not None
    assert last.trainer["step"] >= 1
    assert all(value.isfinite().all() for value in last.weights.values())


def test_a_run_is_not_resumed_from_a_checkpoint_of_other_data(tiny_config: TrainConfig):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, LineTerminal("epoch 2/3"))
    last = load_checkpoint(tiny_config.run_dir / "last.pt")
    object.__setattr__(last, "labels", ("a", "b", "c", "d"))
    save_checkpoint(tiny_config.run_dir / "last.pt", last)
    with pytest.raises(RunError, match=r"its checkpoint has labels \('a', 'b', 'c', 'd'\)"):
        train(tiny_config, LineTerminal())


def test_a_folder_that_cannot_be_written_is_reported_before_training(
    tiny_config: TrainConfig, tmp_path: Path
):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"file/run cannot be written: Not a directory; use another --run-dir"):
        train(changed(tiny_config, run_dir=tmp_path / "file" / "run"))


def test_a_full_disk_is_reported_before_training(tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage("/")._replace(free=33 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"has 33 MiB left, expected at least 3\d MiB for this network's"):
        train(tiny_config, LineTerminal())


def test_two_processes_do_not_train_into_one_folder(tiny_config: TrainConfig):
    with open_run_folder(tiny_config), pytest.raises(RunError, match="another process is training into"):
        train(tiny_config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(tiny_config: TrainConfig):
    with pytest.raises(DeviceError, match="--device cpu or auto"):
        train(changed(tiny_config, device="cuda"))


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"epochs": 0}, "epochs"), ({"lr": -1.0}, "lr"), ({"batch_size": 1}, "batch_size"), ({"lrr": 1}, "lrr")],
)
def test_invalid_settings_are_refused_by_name(settings: dict[str, object], field: str):
    with pytest.raises(ValidationError, match=field):
        TrainConfig(**settings)
