"""Runs in MLflow's own local stores: a folder of files, and SQLite. Nothing here is MLflow's stand-in."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.errors import DivergedError, RunError
from foldserve.training.run import finishing, mlflow_log
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.config import TrainConfig


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's store of files, which it asks to be allowed."""
    pytest.importorskip("mlflow", reason="needs mlflow: pip install 'foldserve[mlflow]'")
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return uri


def logged(uri: str, experiment: str = "Default") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id])


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(each.step, each.value) for each in MlflowClient(uri).get_metric_history(run_id, name)]


def test_settings_and_figures_of_a_run_are_in_the_store(tiny_config: TrainConfig, store: str) -> None:
    train(tiny_config, LineTerminal())
    (run,) = logged(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert (run.data.params["arch"], run.data.params["lr"]) == ("lenet", "0.02")
    assert [step for step, _ in history(store, run.info.run_id, "validation_accuracy")] == [5, 10, 15]
    metrics = load_checkpoint(tiny_config.run_dir).metrics
    assert history(store, run.info.run_id, "test_accuracy") == [(15, metrics["test_accuracy"])]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_resumed_run_goes_on_in_the_same_one(tiny_config: TrainConfig, store: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, LineTerminal("epoch 2/3"))
    assert [run.info.status for run in logged(store)] == ["KILLED"]
    train(tiny_config, LineTerminal())
    (run,) = logged(store)
    assert run.info.status == "FINISHED"
    # Stopped before its second checkpoint: the second epoch is trained, and logged, again.
    steps = {step for step, _ in history(store, run.info.run_id, "validation_accuracy")}
    assert steps == {5, 10, 15}


def test_a_run_that_diverges_failed(tiny_config: TrainConfig, store: str) -> None:
    with pytest.raises(DivergedError):
        train(tiny_config.model_copy(update={"lr": 1e30}), LineTerminal())
    assert [run.info.status for run in logged(store)] == ["FAILED"]


def test_the_experiment_is_the_one_that_the_environment_names(
    tiny_config: TrainConfig, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "shoes")
    train(tiny_config.model_copy(update={"epochs": 1}), LineTerminal())
    assert len(logged(store, "shoes")) == 1
    assert logged(store) == []


def test_nothing_is_logged_unless_asked_to(
    tiny_config: TrainConfig, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tiny_config.model_copy(update={"epochs": 1})
    train(once.model_copy(update={"mlflow": False}), LineTerminal())
    assert logged(store) == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not mlflow_log.wants_mlflow(once)
    assert mlflow_log.wants_mlflow(once.model_copy(update={"mlflow": True}))


def test_a_store_that_cannot_be_used_is_one_line(
    tiny_config: TrainConfig, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "file").as_uri())
    with pytest.raises(RunError, match=r"MLflow cannot log this run: .*--no-mlflow") as refused:
        train(tiny_config, LineTerminal())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("https://me:secret@mlflow.example:5000/team", "https://mlflow.example:5000/team"),
        ("postgresql://me:secret@db/mlflow?password=secret", "postgresql://db/mlflow"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("databricks", "databricks"),
    ],
)
def test_no_password_is_written_into_the_run_folder(uri: str, kept: str) -> None:
    assert mlflow_log._place(SimpleNamespace(tracking_uri=uri)) == kept


def test_a_store_that_fails_later_stops_no_training(
    tiny_config: TrainConfig, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is taken away after the first epoch."""
    folder, aside = tmp_path / "mlruns", tmp_path / "aside"

    def take_away(_: object) -> None:
        if folder.is_dir():
            folder.rename(aside)
            folder.write_text("")

    terminal = LineTerminal()
    assert train(tiny_config, terminal, after_epoch=take_away) == 0
    assert sum("MLflow no longer takes figures" in line for line in terminal.lines) == 1
    assert "test accuracy" in terminal.lines[-1]


def test_without_mlflow_the_flag_says_what_to_install(
    tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_log, "find_spec", lambda _name: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///nowhere")
    assert not mlflow_log.wants_mlflow(tiny_config)
    with pytest.raises(RunError, match=r"pip install 'foldserve\[mlflow\]'"):
        train(tiny_config.model_copy(update={"mlflow": True}), LineTerminal())
