"""Logs a run in MLflow, if asked to: settings, the figures of each epoch, and those of the test images.

MLflow reads its own variables, of which these matter: MLFLOW_TRACKING_URI says where to log, and
MLFLOW_EXPERIMENT_NAME under which experiment. A run that is resumed goes on in the same MLflow run, whose id
lies in the run folder.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from foldserve.errors import FoldserveError
from foldserve.replacing import write_replacing
from foldserve.training.errors import RunError
from foldserve.training.settings_file import RESUMABLE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from foldserve.terminal import Terminal
    from foldserve.training.config import TrainConfig

    Record = Callable[[Mapping[str, Any], int], None]

URI_VARIABLE = "MLFLOW_TRACKING_URI"
RUN_FILE = "mlflow.json"

_EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
_DEFAULT_EXPERIMENT = "Default"
# What a batch may hold, and a value: limits of MLflow's stores.
_MOST_PARAMS, _MOST_CHARACTERS = 100, 500
_USER = re.compile("://[^/]*@")


def wants_mlflow(config: TrainConfig) -> bool:
    """Tell whether a run is logged: as --mlflow says, else if a tracking server is named and MLflow is there.

    Raises:
        RunError: --mlflow is given and MLflow is not installed.
    """
    is_installed = find_spec("mlflow") is not None
    if config.mlflow and not is_installed:
        raise RunError("--mlflow needs MLflow: pip install 'foldserve[mlflow]', or leave out --mlflow")
    return is_installed and (bool(os.environ.get(URI_VARIABLE)) if config.mlflow is None else config.mlflow)


@contextmanager
def mlflow_log(config: TrainConfig, folder: Path, terminal: Terminal, *, is_on: bool) -> Iterator[Record]:
    """Begin an MLflow run, or go on with that of the run in ``folder``, if ``is_on``.

    Yields a function that logs figures at a step. If MLflow fails later, training goes on without it.

    Raises:
        RunError: the tracking server cannot be used.
    """
    if not is_on:
        yield lambda _figures, _step: None
        return
    # MLflow sends usage reports to its makers unless this stands before the first import.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Metric  # noqa: PLC0415  # optional, and slow to import
    from mlflow.tracking import MlflowClient  # noqa: PLC0415  # as above

    try:
        client = MlflowClient()
        run_id = _begin(client, config, folder)
    except Exception as error:  # whatever its stores, requests and databases raise
        reason = " ".join(str(error).split())
        raise RunError(
            f"MLflow cannot log this run: {reason}; check {URI_VARIABLE}, or train with --no-mlflow"
        ) from error
    is_failing = False

    def attempt(action: Callable[[], object]) -> None:
        nonlocal is_failing
        if is_failing:
            return
        try:
            action()
        except Exception as error:  # hours of training are worth more than their log
            is_failing = True
            reason = " ".join(str(error).split())
            terminal.say(f"MLflow no longer takes figures: {reason}; training goes on without it")

    def record(figures: Mapping[str, Any], step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, step) for name, value in figures.items()]
        attempt(lambda: client.log_batch(run_id, metrics=metrics))

    try:
        yield record
    except BaseException as error:
        status = "FAILED" if isinstance(error, FoldserveError) else "KILLED"
        attempt(lambda: client.set_terminated(run_id, status))
        raise
    attempt(lambda: client.set_terminated(run_id, "FINISHED"))


def _begin(client: Any, config: TrainConfig, folder: Path) -> str:
    """Return the id of the MLflow run to log to, which is new unless this run has one there."""
    if (before := _run_before(client, folder)) is not None:
        client.update_run(before, status="RUNNING")
        return before
    from mlflow.entities import Param  # noqa: PLC0415  # as above

    run = client.create_run(
        _experiment(client),
        run_name=folder.name,
        tags={"mlflow.source.name": "foldserve train", "run_dir": str(folder)},
    )
    run_id = str(run.info.run_id)
    settings = config.model_dump(mode="json", exclude=set(RESUMABLE_FIELDS))
    params = [Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in settings.items()]
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
    content = {"run_id": run_id, "tracking_uri": _place(client)}
    write_replacing(folder / RUN_FILE, json.dumps(content, indent=2) + "\n")
    return run_id


def _run_before(client: Any, folder: Path) -> str | None:
    try:
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if content["tracking_uri"] != _place(client):
            return None
        return str(client.get_run(content["run_id"]).info.run_id)
    except Exception:  # no such file, or MLflow knows no such run any more: a new one is begun
        return None


def _place(client: Any) -> str:
    """Return where the store is, without a name and password: a run folder may be handed on."""
    return _USER.sub("://", str(client.tracking_uri).partition("?")[0])


def _experiment(client: Any) -> str:
    name = os.environ.get(_EXPERIMENT_VARIABLE) or _DEFAULT_EXPERIMENT
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name))
        except Exception:  # made meanwhile by another process
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)
