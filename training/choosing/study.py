"""Opens the folder of a search: its settings, its trials in SQLite, and what an ended process left behind.

study.json   what is searched: the settings of every training, and the ranges
study.db     the trials, as optuna stores them
trials/      a run folder for each trial, by its number
trials.csv, study.png   the result so far
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from foldserve.replacing import write_replacing
from foldserve.text import join_first
from foldserve.training.errors import RunError
from foldserve.training.run.folder_lock import LOCK_FILE, locked_folder
from foldserve.training.run.run_folder import another_run_dir, with_absolute_paths
from foldserve.training.settings_file import EARLIER_SETTINGS, RESUMABLE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from foldserve.training.choosing.config import TuneConfig

STUDY_FILE = "study.json"
DATABASE_FILE = "study.db"
TRIALS_FOLDER = "trials"

# Attributes of a trial: why it failed, and the number of the one whose run folder it goes on in.
REASON, FOLDER = "reason", "folder"

_NAME = "tune"
_USUAL_BORDER = "that of the images"
_LOCKED_S = 60
# Trainings that end before others are pruned, and their first epochs, which tell little.
_TRIALS_BEFORE_PRUNING = 4
_SHARE_BEFORE_PRUNING = 0.25


@contextmanager
def open_study_folder(config: TuneConfig) -> Iterator[Path]:
    """Create or open the folder of a search, locked by this process while the context lasts.

    Raises:
        RunError: the folder cannot be written, is in use, or holds another search or anything else.
    """
    folder = config.folder
    with locked_folder(folder, named="folder", busy="searches in"):
        there = {entry.name for entry in folder.iterdir()} - {LOCK_FILE}
        settings = {name: value for name, value in config.fixed.items() if name not in RESUMABLE_FIELDS}
        # Written even if it is not given: searches from before there was a choice lack it, and used black.
        settings.setdefault("border", _USUAL_BORDER)
        asked = {"settings": with_absolute_paths(settings), "ranges": [str(each) for each in config.ranges]}
        if STUDY_FILE in there:
            _check_same(folder, asked)
        elif there:
            raise RunError(
                f"{folder} holds no search but {join_first(sorted(there))}; use another --run-dir, such as "
                f"{another_run_dir(folder)}"
            )
        else:
            write_replacing(folder / STUDY_FILE, json.dumps(asked, indent=2) + "\n")
        yield folder


def _check_same(folder: Path, asked: dict[str, Any]) -> None:
    file = folder / STUDY_FILE
    try:
        before = _flat(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{file} cannot be read: {error}; use another --run-dir") from error
    now = _flat(asked)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        none = "not given"
        listed = [
            f"{name.replace('_', '-')} is {before.get(name, none)} there and {now.get(name, none)} here"
            for name in changed
        ]
        raise RunError(
            f"{folder} holds another search: {join_first(listed)}; use another --run-dir, such as "
            f"{another_run_dir(folder)}"
        )


def _flat(study: dict[str, Any]) -> dict[str, Any]:
    """Return the settings and the ranges of a search by name."""
    ranges = dict(text.split("=", 1) for text in study["ranges"])
    settings = with_absolute_paths(EARLIER_SETTINGS | study["settings"])
    return {**settings, **{f"the range of {name}": values for name, values in ranges.items()}}


def open_study(folder: Path, config: TuneConfig, *, worker: int = 0) -> Study:
    """Return the search in ``folder``, whose trials the processes share; ``worker`` numbers this process.

    Raises:
        RunError: its database is damaged.
    """
    optuna.logging.set_verbosity(logging.ERROR)
    epochs = config.epochs
    pruner = MedianPruner(
        n_startup_trials=_TRIALS_BEFORE_PRUNING, n_warmup_steps=max(1, round(epochs * _SHARE_BEFORE_PRUNING))
    )
    try:
        storage = RDBStorage(
            f"sqlite:///{(folder / DATABASE_FILE).resolve()}",
            engine_kwargs={"connect_args": {"timeout": _LOCKED_S}},
        )
        study = optuna.create_study(
            storage=storage,
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner if config.prune else NopPruner(),
        )
        # The trials that there are decide with the seed, so that a search which goes on draws anew.
        drawn = len(study.get_trials(deepcopy=False))
        study.sampler = TPESampler(
            seed=(config.seed + 7919 * drawn + worker) % 2**31, constant_liar=config.jobs > 1
        )
    except Exception as error:  # whatever SQLAlchemy and SQLite say of a file that is none
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise RunError(
            f"{folder / DATABASE_FILE} cannot be used: {reason}; use another --run-dir, or delete the folder"
        ) from error
    return study


def take_up(study: Study) -> int:
    """Have the trials run again that were running when a process ended; return their number.

    Their run folders are kept, so that each goes on from its last checkpoint. Call it only while no other
    process searches.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={FOLDER: folder_number(trial)})
    return len(running)


def folder_number(trial: FrozenTrial | optuna.Trial) -> int:
    """Return the number that names the trial's run folder: that of the trial which it is again."""
    return int(trial.user_attrs.get(FOLDER, trial.number))


def ended_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials that count: those that came to an end, by number. Interrupted ones are run again."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    trials = study.get_trials(deepcopy=False, states=ended)
    return [trial for trial in trials if trial.state != TrialState.FAIL or REASON in trial.user_attrs]


def run_folder(folder: Path, trial: FrozenTrial | optuna.Trial) -> Path:
    """Return the run folder of a trial."""
    return folder / TRIALS_FOLDER / str(folder_number(trial))
