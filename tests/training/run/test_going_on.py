"""Runs that end early, go on with more epochs, or take the settings of another run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from pydantic import ValidationError

from foldserve.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.engine import time_budget
from foldserve.training.engine.pruning import Pruning
from foldserve.training.errors import RunError
from foldserve.training.run import finishing, saver
from foldserve.training.run import train as run_module
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.datasets import Dataset


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)


def train_lines(config: TrainConfig) -> list[str]:
    terminal = LineTerminal()
    assert train(config, terminal) == 0
    return terminal.lines


def changed(config: TrainConfig, **settings: object) -> TrainConfig:
    return TrainConfig(**config.model_dump() | settings)


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_end(one: Path, two: Path) -> None:
    first, second = (load_checkpoint(folder / "last.pt") for folder in (one, two))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    timeless = first.metrics.keys() - {"images_per_s", "train_s"}
    assert {name: first.metrics[name] for name in timeless} == {
        name: second.metrics[name] for name in timeless
    }


def test_a_run_from_before_a_setting_goes_on_without_it(tiny_config: TrainConfig, tmp_path: Path):
    """What lenet's recipe sets today was not there when the run began."""
    before = changed(tiny_config, augment_until=1.0)
    train(before, LineTerminal(), judge=False)
    file = before.run_dir / "config.json"
    settings = json.loads(file.read_text())
    del settings["augment_until"]
    file.write_text(json.dumps(settings))
    assert TrainConfig(run_dir=before.run_dir, resume=True).augment_until == 1.0
    assert TrainConfig(run_dir=tmp_path / "again", config=file).augment_until == 1.0
    assert TrainConfig(run_dir=tmp_path / "new").augment_until < 1.0, "the twin"
    del settings["prune_images"]
    other = tmp_path / "config.json"
    other.write_text(json.dumps(settings | {"arch": "alexnet"}))
    assert TrainConfig(run_dir=tmp_path / "again", config=other).prune_images == 0
    assert TrainConfig(run_dir=tmp_path / "new", arch="alexnet").prune_images > 0, "the twin"
    lines = train_lines(TrainConfig(run_dir=before.run_dir, resume=True, device="cpu"))
    assert f"resuming {before.run_dir} after its last epoch at step 15 of 15" in lines


def test_patience_ends_a_run_that_no_longer_gains(tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """The figures are made up: 0.5, 0.6, 0.6, 0.55, ... is two epochs without gain after the fourth."""
    figures = iter([0.5, 0.6, 0.6, 0.55, 0.9])
    record = run_module._record
    monkeypatch.setattr(
        run_module, "_record", lambda *each: record(*each) | {"validation_macro_f1": next(figures)}
    )
    config = changed(tiny_config, epochs=9, patience=2, select="macro-f1")
    lines = train_lines(config)
    assert [each["epoch"] for each in records(config.run_dir)] == [1, 2, 3, 4]
    assert "stopped after epoch 4 by --patience 2: 2 epochs without a better macro-f1 in validation" in lines
    assert load_checkpoint(config.run_dir).metrics["epoch"] == 3, "of equal epochs, the last"
    before = {path.name: path.read_bytes() for path in config.run_dir.glob("*.*")}
    for change in ({"epochs": 10}, {"time_limit": 60.0}):
        with pytest.raises(
            RunError,
            match=r"was stopped after epoch 4 by --patience 2: .*; to go on, give a larger",
        ):
            train(changed(config, **change, resume=True), LineTerminal())
    assert before == {path.name: path.read_bytes() for path in config.run_dir.glob("*.*")}
    lines = train_lines(changed(config, epochs=5, patience=3, resume=True))
    assert f"resuming {config.run_dir} in epoch 5 of 5 at step 20 of 25" in lines


def test_patience_begins_after_the_warm_up(tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """No epoch after the first gains: the warm-up is 5 of 10 epochs of 5 steps."""
    record = run_module._record
    monkeypatch.setattr(run_module, "_record", lambda *each: record(*each) | {"validation_accuracy": 0.5})
    train_lines(changed(tiny_config, epochs=10, patience=2, warmup=0.5))
    assert [each["epoch"] for each in records(tiny_config.run_dir)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, "more --epochs (now 3), "),
        ({"patience": 1}, "a larger --patience (now 1, after epoch 2 of 3), "),
        ({"time_limit": 1e-6}, "a longer --time-limit (it allowed 1 of 3 epochs), "),
    ],
)
def test_a_run_at_chance_is_told_what_ended_it(
    tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], advice: str
):
    record = run_module._record
    monkeypatch.setattr(run_module, "_record", lambda *each: record(*each) | {"validation_accuracy": 0.5})
    monkeypatch.setattr(finishing, "chance_warning", lambda _: "warning: chance")
    lines = train_lines(changed(tiny_config, lr=1e-9, **settings))
    (warning,) = [line for line in lines if line.startswith("warning: chance. ")]
    assert f"Try a lower rate (--lr 1e-10), {advice}--no-augment" in warning


def test_the_best_epoch_is_chosen_by_the_figure_asked_for(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = run_module._record
    for select, expected in (("accuracy", 3), ("macro-f1", 1)):
        figures = iter([(0.5, 0.7), (0.6, 0.6), (0.7, 0.5)])

        def made_up(*each, figures=figures):
            accuracy, f1 = next(figures)
            return record(*each) | {"validation_accuracy": accuracy, "validation_macro_f1": f1}

        monkeypatch.setattr(run_module, "_record", made_up)
        config = changed(tiny_config, select=select, run_dir=tmp_path / select)
        train_lines(config)
        assert load_checkpoint(config.run_dir).metrics["epoch"] == expected


NEW = {
    "balance and patience": {
        "sampler": "balanced",
        "class_weights": "balanced",
        "patience": 2,
        "select": "macro-f1",
        "mixup": 0.3,
    },
    "pruning": {"prune_images": 0.4, "class_weights": "balanced", "accumulate": 2},
}


@pytest.mark.parametrize("saves", [1, 4, 7, 12, -1])
@pytest.mark.parametrize("settings", NEW.values(), ids=list(NEW))
def test_a_run_with_newer_settings_resumes_bit_identical(
    tiny_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    saves: int,
):
    """A checkpoint after each step, an interruption after some of them."""
    whole = changed(tiny_config, **settings, checkpoint_every=0.0, run_dir=tmp_path / "whole")
    broken = changed(whole, run_dir=tmp_path / "broken")
    saved = []
    stop_after = -1

    def count_saves(path: Path, checkpoint: Checkpoint) -> None:
        if len(saved) == stop_after:
            raise KeyboardInterrupt
        save_checkpoint(path, checkpoint)
        saved.append(path)

    for module in (run_module, saver, finishing):
        monkeypatch.setattr(module, "save_checkpoint", count_saves)
    train_lines(whole)
    stop_after = saves % len(saved)
    saved.clear()
    with pytest.raises(KeyboardInterrupt):
        train(broken, LineTerminal())
    stop_after = -1
    train_lines(broken)
    assert_same_end(whole.run_dir, broken.run_dir)


def test_other_class_weights_are_not_gone_on_with(tiny_config: TrainConfig, tmp_path: Path):
    file = tmp_path / "w.json"
    weights = {"north": 1, "east": 1, "south": 1, "west": 2}
    file.write_text(json.dumps(weights))
    config = changed(tiny_config, class_weights=str(file))
    with pytest.raises(KeyboardInterrupt):
        train(config, LineTerminal("epoch 2/3"))
    file.write_text(json.dumps(weights | {"west": 3}))
    with pytest.raises(RunError, match="it began with other class weights than --class-weights gives now"):
        train(config, LineTerminal())


def test_class_weights_and_balance_change_what_is_learnt(
    tiny_config: TrainConfig, tiny: Dataset, tmp_path: Path
):
    """Counterpart of the bit-identical test: each of its settings has an effect."""
    ends = []
    for name, settings in {
        "plain": {},
        "balanced": {"sampler": "balanced"},
        "weights": {"class_weights": "balanced"},
    }.items():
        config = changed(tiny_config, **settings, epochs=1, run_dir=tmp_path / name)
        train_lines(config)
        ends.append(load_checkpoint(config.run_dir / "last.pt").weights["classifier.5.bias"])
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_pruning_takes_fewer_images_by_their_losses_and_weighs_them(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of 160 images, 96 in three steps."""
    choose, record = Pruning.choose, Pruning.record
    ends = []
    for name in ("as it is", "no losses", "no weights"):
        if name == "no losses":
            monkeypatch.setattr(Pruning, "record", lambda *_: None)
        if name == "no weights":
            monkeypatch.setattr(Pruning, "record", record)
            monkeypatch.setattr(
                Pruning, "choose", lambda *given: (choose(*given)[0], torch.ones(len(given[0].before)))
            )
        config = changed(tiny_config, prune_images=0.4, epochs=2, run_dir=tmp_path / name)
        lines = train_lines(config)
        ends.append(load_checkpoint(config.run_dir / "last.pt"))
        assert any(line.startswith("an epoch is 96 of 160 images, in 3 steps: half") for line in lines)
        assert records(config.run_dir)[-1]["step"] == 6
    first, *others = ends
    assert first.trainer is not None
    losses = first.trainer["pruning"]
    assert int(losses["before"].isfinite().sum()) == 96
    assert int(losses["latest"].isfinite().sum()) > 96
    for other in others:
        bias = "classifier.5.bias"
        assert not torch.equal(first.weights[bias], other.weights[bias])


def test_a_pruned_run_without_its_losses_is_not_gone_on_with(tiny_config: TrainConfig):
    config = changed(tiny_config, prune_images=0.4)
    with pytest.raises(KeyboardInterrupt):
        train(config, LineTerminal("epoch 2/3"))
    last = load_checkpoint(config.run_dir / "last.pt")
    assert last.trainer is not None
    for wrong in (None, {"before": torch.zeros(3), "latest": torch.zeros(160)}):
        save_checkpoint(config.run_dir / "last.pt", replace(last, trainer=last.trainer | {"pruning": wrong}))
        with pytest.raises(RunError, match="its checkpoint has not the losses of 160 images"):
            train(config, LineTerminal())


def test_pruning_leaves_at_least_a_batch(tiny_config: TrainConfig):
    with pytest.raises(
        RunError, match=r"more than the 96 training images that --prune-images 0\.4 leaves of 160"
    ):
        train(changed(tiny_config, prune_images=0.4, batch_size=128), LineTerminal())


class _Clock:
    """A clock on which each look takes a second."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def test_a_time_limit_ends_a_run_with_its_schedule(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = _Clock()
    monkeypatch.setattr(
        time_budget.TimeBudget, "__init__", _with_clock(time_budget.TimeBudget.__init__, clock)
    )
    config = changed(tiny_config, epochs=200, time_limit=30.0)
    lines = train_lines(config)
    steps = records(config.run_dir)[-1]["step"]
    assert steps < 200 * 5
    assert any(line.startswith(f"the time limit allows {steps:,} steps") for line in lines)
    last = load_checkpoint(config.run_dir / "last.pt")
    assert last.trainer is not None
    assert last.trainer["planned_steps"] == steps
    assert records(config.run_dir)[-1]["lr"] < 0.5 * config.lr
    assert "is finished" in train_lines(config)[-1]


def test_a_run_that_the_time_limit_makes_short_leaves_the_policy_out_and_says_so(
    tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    clock = _Clock()
    monkeypatch.setattr(
        time_budget.TimeBudget, "__init__", _with_clock(time_budget.TimeBudget.__init__, clock)
    )
    config = changed(
        tiny_config, epochs=200, time_limit=30.0, auto_augment="trivial", auto_augment_steps=1000
    )
    (said,) = [line for line in train_lines(config) if line.startswith("the time limit allows")]
    assert said.endswith("; too few for --auto-augment trivial (1,000)")


def test_a_run_of_too_few_steps_is_one_without_the_policy(tiny_config: TrainConfig, tmp_path: Path):
    ends = {}
    for name, settings in {
        "without": {},
        "too few steps": {"auto_augment": "trivial", "auto_augment_steps": 16},
        "enough": {"auto_augment": "trivial", "auto_augment_steps": 15},
    }.items():
        config = changed(tiny_config, run_dir=tmp_path / name, **settings)
        train_lines(config)  # 15 steps
        ends[name] = load_checkpoint(config.run_dir / "last.pt").weights
    for weight, expected in ends["without"].items():
        assert torch.equal(ends["too few steps"][weight], expected)
    assert any(not torch.equal(ends["enough"][weight], ends["without"][weight]) for weight in ends["enough"])


def _with_clock(init, clock):
    def made(self, *args, **named):
        init(self, *args, **named | {"clock": clock})

    return made


def test_a_finished_run_goes_on_with_more_epochs(tiny_config: TrainConfig, tmp_path: Path):
    train_lines(tiny_config)
    finished = train_lines(tiny_config)[-1]
    assert "Go on with --resume --epochs N, or train anew with --run-dir" in finished
    assert finished.endswith("run-2")
    with pytest.raises(
        RunError, match="epochs is 3 there and 5 here; add --resume to go on with it, use another"
    ):
        train(changed(tiny_config, epochs=5), LineTerminal())
    more = TrainConfig.model_validate(
        {"run_dir": tiny_config.run_dir, "resume": True, "epochs": 5, "device": "cpu"}
    )
    assert more.lr == 0.02, "what is not given is the run's"
    lines = train_lines(more)
    assert f"resuming {tiny_config.run_dir} in epoch 4 of 5 at step 15 of 25" in lines
    assert [each["epoch"] for each in records(tiny_config.run_dir)] == [1, 2, 3, 4, 5]
    assert "test_accuracy" in load_checkpoint(tiny_config.run_dir).metrics
    assert json.loads((tiny_config.run_dir / "config.json").read_text())["epochs"] == 5
    assert "is finished" in train_lines(more)[0]
    with pytest.raises(RunError, match="it has 5 epochs already, and --epochs is 2: give more"):
        train(changed(more, epochs=2), LineTerminal())


@pytest.mark.parametrize("stop_at", ["epoch 4/5", "epoch 5/5", "resuming"])
def test_a_run_killed_while_it_goes_on_is_not_taken_for_finished(
    tiny_config: TrainConfig, tmp_path: Path, stop_at: str
):
    ends = []
    for name in ("whole", "broken"):
        config = changed(tiny_config, run_dir=tmp_path / name)
        train_lines(config)
        more = changed(config, epochs=5, resume=True)
        if name == "broken":
            with pytest.raises(KeyboardInterrupt):
                train(more, LineTerminal(stop_at))
        lines = train_lines(more)
        assert lines[-1].startswith("test accuracy")
        ends.append(config.run_dir)
    assert_same_end(*ends)


def test_a_run_that_ran_out_of_time_goes_on_with_the_next_epoch(tiny_config: TrainConfig):
    config = changed(tiny_config, epochs=4, time_limit=1e-6)
    train_lines(config)
    assert [each["step"] for each in records(config.run_dir)] == [4], "cut short in its first epoch"
    lines = train_lines(changed(config, time_limit=None, resume=True))
    assert f"resuming {config.run_dir} in epoch 2 of 4 at step 5 of 20" in lines
    assert [each["step"] for each in records(config.run_dir)] == [4, 10, 15, 20]


def test_settings_of_a_run_repeat_it_and_flags_come_first(tiny_config: TrainConfig, tmp_path: Path):
    train_lines(changed(tiny_config, **NEW["balance and patience"]))
    file = tiny_config.run_dir / "config.json"
    there = json.loads(file.read_text())
    assert there["precision"] in ("fp32", "bf16"), "what was used, not auto"
    assert there["flip"] is False
    assert there["validation_count"] == 40
    by_folder, again = (
        TrainConfig.model_validate({"config": place, "run_dir": tmp_path / "again", "device": "cpu"})
        for place in (tiny_config.run_dir, file)
    )
    assert by_folder.model_copy(update={"config": file}).model_dump() == again.model_dump()
    assert again.seed == tiny_config.seed
    train_lines(again)
    assert_same_end(tiny_config.run_dir, again.run_dir)
    assert TrainConfig.model_validate({"config": file, "seed": 7}).seed == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "has no settings; expected the config.json of a run"),
        ('{"lrr": 1}', "has unknown settings: lrr; expected the config.json"),
    ],
)
def test_other_files_are_no_settings(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate({"config": tmp_path / "c.json"})


def test_going_on_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(ValidationError, match=r"--resume: .*none has no run to go on with"):
        TrainConfig.model_validate({"resume": True, "run_dir": tmp_path / "none"})


def test_a_run_from_before_borders_were_mirrored_goes_on_with_black_ones(
    tiny_config: TrainConfig, tmp_path: Path
):
    whole = changed(tiny_config, border="black", run_dir=tmp_path / "whole")
    train_lines(whole)
    today = changed(tiny_config, border=None, crop_padding=2, run_dir=tmp_path / "today")
    train_lines(today)
    assert json.loads((today.run_dir / "config.json").read_text())["border"] == "mirror"
    earlier = changed(tiny_config, border="black", run_dir=tmp_path / "earlier")
    with pytest.raises(KeyboardInterrupt):
        train(earlier, LineTerminal("epoch 2/3"))
    file = earlier.run_dir / "config.json"
    there = json.loads(file.read_text())
    assert there.pop("border") == "black"
    file.write_text(json.dumps(there))
    with pytest.raises(RunError, match="border is black there and mirror here"):
        train(TrainConfig.model_validate({**earlier.model_dump(), "border": "mirror"}), LineTerminal())
    again = TrainConfig.model_validate({"config": file, "run_dir": tmp_path / "again", "device": "cpu"})
    assert again.border == "black", "so that --config repeats it"
    assert any("resuming" in line for line in train_lines(changed(tiny_config, run_dir=earlier.run_dir)))
    assert_same_end(whole.run_dir, earlier.run_dir)


def test_settings_of_an_earlier_version_lack_the_new_ones(tiny_config: TrainConfig):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, LineTerminal("epoch 2/3"))
    file = tiny_config.run_dir / "config.json"
    there = json.loads(file.read_text())
    newer = ("init", "freeze", "backbone_lr_scale", "select", "sampler", "class_weights", "patience")
    file.write_text(json.dumps({k: v for k, v in there.items() if k not in newer} | {"precision": "auto"}))
    assert any("resuming" in line for line in train_lines(tiny_config))
