"""Runs one trial of a search: a training like any other, judged by its best validation figure."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from foldserve.terminal import Terminal, duration_text
from foldserve.training.checkpoint import BEST_FILE, LAST_FILE
from foldserve.training.choosing.study import REASON, run_folder
from foldserve.training.config import TrainConfig
from foldserve.training.errors import DivergedError, TrainingError
from foldserve.training.run.train import train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from optuna.study import Study
    from optuna.trial import Trial

    from foldserve.training.choosing.config import TuneConfig
    from foldserve.training.choosing.ranges import Range

# So many trials that fail one after the other, for another reason than a loss that is not finite, have one
# cause, which the next trial would have too.
_MOST_FAILURES = 5


def search(study: Study, config: TuneConfig, folder: Path, may_begin: Any, terminal: Terminal) -> None:
    """Run trials as long as ``may_begin()`` says so.

    Raises:
        TrainingError: one trial after the other failed for a reason that is not the settings searched.
    """
    failures = 0
    while may_begin():
        trial = study.ask()
        started = time.monotonic()
        chosen = choose(trial, config.ranges)
        shown = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in chosen.items())
        try:
            figure = _train(trial, config, chosen, folder)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            _remove_weights(run_folder(folder, trial))
            outcome, failures = "pruned: below the median of the others", 0
        except TrainingError as error:
            trial.set_user_attr(REASON, str(error))
            study.tell(trial, state=TrialState.FAIL)
            _remove_weights(run_folder(folder, trial))
            outcome = f"failed: {error}"
            failures = 0 if isinstance(error, DivergedError) else failures + 1
            if failures == _MOST_FAILURES:
                raise
        else:
            study.tell(trial, figure)
            outcome, failures = f"validation {config.select} {figure:.2%}", 0
        took = duration_text(time.monotonic() - started)
        terminal.say(f"trial {trial.number}: {outcome} ({shown}; {took})")


def choose(trial: Trial, ranges: Sequence[Range]) -> dict[str, Any]:
    """Return the settings of a trial by name, as a training takes them."""
    chosen: dict[str, Any] = {}
    for each in ranges:
        if each.kind == "choice":
            chosen[each.name] = trial.suggest_categorical(each.name, each.choices)
        elif each.kind == "int":
            chosen[each.name] = trial.suggest_int(each.name, int(each.low), int(each.high), log=each.log)
        else:
            number = trial.suggest_float(each.name, each.low, each.high, log=each.log)
            chosen[each.name] = each.rounded(number)
    return chosen


def training_settings(config: TuneConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training with ``chosen`` values, as `foldserve train` would be given them."""
    return {**config.fixed, **chosen}


def _train(trial: Trial, config: TuneConfig, chosen: Mapping[str, Any], folder: Path) -> float:
    """Train, and return the figure of the best epoch; the test images are not read."""
    place = run_folder(folder, trial)
    place.parent.mkdir(exist_ok=True)
    settings = TrainConfig.model_validate(
        {**training_settings(config, chosen), "run_dir": place, "threads": config.threads}
    )
    figure = f"validation_{config.select.replace('-', '_')}"
    reported = 0
    best = 0.0

    def after_epoch(history: Sequence[Mapping[str, Any]]) -> None:
        nonlocal reported, best
        for record in history[reported:]:
            best = max(best, float(record[figure]))
            trial.report(best, int(record["epoch"]))
        reported = len(history)
        if trial.should_prune():
            raise optuna.TrialPruned

    train(settings, Terminal.silent(), after_epoch=after_epoch, judge=False)
    return best


def _remove_weights(run: Path) -> None:
    """Keep the curves of a trial that leads nowhere, but not its weights."""
    for name in (LAST_FILE, BEST_FILE):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
