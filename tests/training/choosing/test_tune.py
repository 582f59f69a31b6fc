"""`foldserve tune`: trials are trainings, judged on validation alone, resumed, pruned, and counted once."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("optuna", reason="needs optuna: pip install 'foldserve[tune]'")

from foldserve import cli
from foldserve.demo.children import ending_with_us
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.choosing import tune as tune_module
from foldserve.training.choosing.config import TuneConfig
from foldserve.training.choosing.tune import tune
from foldserve.training.config import TrainConfig
from foldserve.training.errors import DatasetError, RunError
from foldserve.training.recipes import RECIPES
from foldserve.training.run import finishing
from foldserve.training.run import train as run_module
from foldserve.training.run.train import train
from tests.support.image_folders import write_classes
from tests.support.sources import ROOT
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.datasets import Dataset

# Such a rate makes the loss infinite within the first steps.
DIVERGING = 1e30
EPOCHS = 2


@pytest.fixture
def folder(tiny: Dataset, tmp_path: Path) -> Path:
    """The folder of a search on the data set "tiny"."""
    return tmp_path / "search"


def test_a_search_has_no_setting_of_the_same_name_as_a_training():
    """It would stand in its place: a search of alexnet could then not begin."""
    own = TuneConfig.__annotations__.keys()
    assert "trials" in own
    assert not own & TrainConfig.model_fields.keys()


@pytest.mark.parametrize("arch", [*RECIPES, "some.module:network"])
@pytest.mark.parametrize("recipe", ["default", "long"])
def test_a_search_takes_each_recipe(arch: str, recipe: str):
    found = TuneConfig.model_validate({"arch": arch, "recipe": recipe})
    assert found.epochs == TrainConfig.model_validate({"arch": arch, "recipe": recipe}).epochs
    assert TuneConfig.model_validate({"arch": arch, "recipe": recipe, "sampler": "balanced"}).prune


def test_pruned_images_and_a_choice_of_samplers_are_not_combined():
    with pytest.raises(ValueError, match="--prune-images is not combined with a balanced sampler"):
        TuneConfig.model_validate({"prune_images": 0.3, "range": ("sampler=shuffled/balanced",)})


def settings(folder: Path, **more: object) -> TuneConfig:
    given = {"dataset": "tiny", "epochs": EPOCHS, "batch_size": 32, "validation_count": 40, "device": "cpu"}
    given |= {"threads": 1, "run_dir": folder, "trials": 3, "range": ("lr=0.001:0.05:log",)}
    return TuneConfig.model_validate(given | more)


def run(config: TuneConfig, status: int = 0, stop_at: str | None = None) -> list[str]:
    terminal = LineTerminal(stop_at)
    assert tune(config, terminal) == status
    return terminal.lines


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as stream:
        return list(csv.DictReader(stream))


def figures(folder: Path, trial: str) -> list[float]:
    records = (folder / "trials" / trial / "metrics.jsonl").read_text().splitlines()
    return [json.loads(record)["validation_accuracy"] for record in records]


def test_each_trial_is_a_training_judged_on_validation_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: a run of the best settings, whose test images are read."""
    monkeypatch.setattr(finishing, "evaluate", lambda *_: pytest.fail("the test images were read"))
    lines = run(settings(folder))
    trials = table(folder)
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    for trial in trials:
        assert float(trial["figure"]) == max(figures(folder, trial["folder"]))
        assert not [
            name for name in load_checkpoint(folder / "trials" / trial["folder"]).metrics if "test" in name
        ]
    best = max(trials, key=lambda trial: float(trial["figure"]))
    assert f"best: trial {best['trial']} of 3" in lines[-3]
    assert (folder / "study.png").stat().st_size > 10_000
    command = shlex.split(lines[-1])
    assert command[:2] == ["foldserve", "train"]
    with pytest.raises(pytest.fail.Exception, match="were read"):
        cli.main(command[1:])
    monkeypatch.undo()


@pytest.mark.slow
def test_the_flags_at_the_end_repeat_the_best_trial(folder: Path, tmp_path: Path) -> None:
    lines = run(settings(folder, trials=2, deterministic=True))
    best = max(table(folder), key=lambda trial: float(trial["figure"]))
    words = shlex.split(lines[-1])[2:]
    words[words.index("--run-dir") + 1] = str(tmp_path / "again")
    config = cli.parse(["train", *words], {})
    assert train(config, LineTerminal(), judge=False) == 0  # type: ignore[arg-type]
    trial = folder / "trials" / best["folder"]
    one, other = (load_checkpoint(place / "last.pt").weights for place in (tmp_path / "again", trial))
    assert all(torch.equal(one[name], other[name]) for name in other)
    changed = train(config.model_copy(update={"run_dir": tmp_path / "twin", "lr": 0.04}), LineTerminal())
    assert changed == 0
    twin = load_checkpoint(tmp_path / "twin" / "last.pt").weights
    assert not all(torch.equal(twin[name], other[name]) for name in other)


def test_a_trial_that_diverges_fails_and_the_search_goes_on(folder: Path) -> None:
    lines = run(settings(folder, range=(f"lr=0.01/{DIVERGING}",), trials=6))
    states = {trial["state"]: trial for trial in table(folder)}
    assert states.keys() == {"complete", "failed"}
    assert "loss" in states["failed"]["reason"]
    assert states["failed"]["figure"] == ""
    assert not list((folder / "trials" / states["failed"]["folder"]).glob("*.pt"))
    assert f"lr {DIVERGING}" not in lines[-1]
    assert "--lr 0.01" in lines[-1]


def test_the_recipe_is_the_first_trial_also_among_values_to_choose_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "NAMED_DATASETS", {"tiny"})
    usual = settings(folder).label_smoothing
    choices = (f"label-smoothing=0.3/{usual}", "batch-norm=False/True")
    run(settings(folder, range=choices, trials=1, epochs=1))
    (trial,) = table(folder)
    assert (trial["label_smoothing"], trial["batch_norm"]) == (str(usual), "True")


@pytest.mark.slow
def test_a_search_without_a_figure_says_so(folder: Path) -> None:
    lines = run(settings(folder, range=(f"lr={DIVERGING}:{2 * DIVERGING}",), trials=2), status=1)
    assert "no trial has come to its end" in lines[-1]
    assert [trial["state"] for trial in table(folder)] == ["failed"] * 2


def test_one_cause_of_all_failures_ends_the_search(folder: Path) -> None:
    with pytest.raises(RunError, match="batch-size is 5000, more than"):
        run(settings(folder, batch_size=5000, trials=50))
    with pytest.raises(DatasetError, match="none"):
        run(settings(folder / "other", dataset="none", trials=50))


def test_a_search_that_was_stopped_runs_its_trial_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its second trial after an epoch, which the trial does not train again."""
    record, seen = run_module._record, []

    def stop(*each: object) -> dict[str, object]:
        seen.append(each)
        if len(seen) == EPOCHS + 2:
            raise KeyboardInterrupt
        return record(*each)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "_record", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings(folder))
    lines = run(settings(folder))
    assert "going on in" in lines[0]
    assert "1 of 3 trials are done, and 1 that did not come to their end" in lines[0]
    trials = table(folder)
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    assert [trial["folder"] for trial in trials] == ["0", "1", "3"]
    start = next(place for place, line in enumerate(lines) if line.startswith("TRIAL"))
    assert lines[start].split()[:3] == ["TRIAL", "FOLDER", "STATE"]
    shown = sorted(line.split()[:2] for line in lines[start + 1 : start + 4])
    assert shown == [[trial["trial"], f"trials/{trial['folder']}"] for trial in trials]
    assert len(seen) == 3 * EPOCHS + 1, "only the epoch that was cut short is trained twice"
    again = run(settings(folder))
    assert len(table(folder)) == 3
    assert again[-1] == lines[-1]
    run(settings(folder, trials=4))
    assert len(table(folder)) == 4


@pytest.mark.slow
def test_a_clearly_worse_trial_is_pruned(folder: Path) -> None:
    choices = ("lr=0.05/1e-9",)
    run(settings(folder, range=choices, trials=10, epochs=4))
    pruned = [trial for trial in table(folder) if trial["state"] == "pruned"]
    assert pruned
    assert all(trial["lr"] == "1e-9" for trial in pruned)
    assert all(int(trial["epochs"]) < 4 for trial in pruned)
    assert not list((folder / "trials" / pruned[0]["folder"]).glob("*.pt"))
    run(settings(folder.with_name("twin"), range=choices, trials=10, epochs=4, prune=False))
    assert {trial["state"] for trial in table(folder.with_name("twin"))} == {"complete"}


def test_another_search_or_a_folder_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    run(settings(folder, trials=1))
    with pytest.raises(RunError, match=r"the range of lr is 0\.001:0\.05:log there and 0\.001:0\.5:log here"):
        run(settings(folder, range=("lr=0.001:0.5:log",)))
    with pytest.raises(RunError, match="epochs is 2 there and 3 here"):
        run(settings(folder, epochs=3))
    run(settings(folder, trials=1, device="auto"))  # where it runs may change
    with pytest.raises(RunError, match=r"holds no search but best\.pt, config\.json"):
        run(settings(folder / "trials" / "0"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        run(settings(tmp_path / "file"))
    (folder / "study.db").write_text("no database")
    with pytest.raises(RunError, match=r"study\.db cannot be used: file is not a database"):
        run(settings(folder, trials=1))
    (folder / "study.json").write_text("{")
    with pytest.raises(RunError, match=r"study\.json cannot be read"):
        run(settings(folder, trials=1))


def test_a_search_from_before_borders_were_mirrored_goes_on_with_black_ones_alone(folder: Path) -> None:
    run(settings(folder, trials=1, border="black"))
    study = json.loads((folder / "study.json").read_text())
    assert study["settings"].pop("border") == "black"
    (folder / "study.json").write_text(json.dumps(study))
    with pytest.raises(RunError, match="border is black there and that of the images here"):
        run(settings(folder, trials=2))
    run(settings(folder, trials=1, border="black"))
    run(settings(folder.with_name("today"), trials=1))
    run(settings(folder.with_name("today"), trials=1))


def test_one_folder_of_images_under_several_names_is_one_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "_search", lambda *_: None)
    monkeypatch.setattr(tune_module, "report_study", lambda *_: 0)
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "pictures", per_class=1)
    for name in ("pictures", "pictures/", str(tmp_path / "pictures")):
        run(settings(tmp_path / "search", dataset=name))
    study = json.loads((tmp_path / "search" / "study.json").read_text())
    study["settings"]["dataset"] = "pictures"  # as earlier versions wrote it
    (tmp_path / "search" / "study.json").write_text(json.dumps(study))
    run(settings(tmp_path / "search", dataset="pictures"))
    with pytest.raises(RunError, match=r"dataset is .*/pictures there and .*/others here"):
        run(settings(tmp_path / "search", dataset="others"))


def tune_process(folder: Path, data: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "foldserve", "tune", "--dataset", str(data), "--run-dir", str(folder)]
    command += ["--arch", "lenet", "--range", "lr=0.001:0.05:log", "--epochs", "2", "--device", "cpu", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder.parent / "log").open("ab") as log:
        return subprocess.Popen(ending_with_us(command), stdout=log, stderr=log, env=environment)


@pytest.mark.slow
def test_a_search_of_several_processes_is_killed_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL, after which no process of it is left and no trial is lost or counted twice."""
    data = write_classes(tmp_path / "data", 30)
    folder, flags = tmp_path / "search", ("--jobs", "2", "--trials", "6")
    process = tune_process(folder, data, *flags)
    give_up = time.monotonic() + 300
    # Not until the study can be opened: whoever opens it while it is being made collides with its maker.
    while "trial 0: " not in (log := (tmp_path / "log").read_text()) and "trial 1: " not in log:
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < give_up
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = tune_process(folder, data, *flags)
    assert process.wait(timeout=600) == 0, (tmp_path / "log").read_text()
    trials = table(folder)
    assert len(trials) == 6
    assert len({trial["folder"] for trial in trials}) == 6
    for trial in trials:
        assert float(trial["figure"]) == max(figures(folder, trial["folder"]))
