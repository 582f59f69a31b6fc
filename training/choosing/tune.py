"""Carries out `foldserve tune`: trains with settings chosen by optuna, and says which were the best.

Every trial is a training through `foldserve.training.run.train`, in a run folder of its own. Nothing here
reads the test images: the best trial is judged on them once it is trained as a run of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldserve.parent_death import end_with
from foldserve.terminal import Terminal
from foldserve.training.choosing.config import TuneConfig
from foldserve.training.choosing.study import ended_trials, open_study, open_study_folder, take_up
from foldserve.training.choosing.study_report import report_study
from foldserve.training.choosing.trial import search
from foldserve.training.errors import RunError, TrainingError
from foldserve.training.recipes import NAMED_DATASETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.study import Study

_FAILED = 3  # exit status of a process that has said why


def tune(config: TuneConfig, terminal: Terminal | None = None) -> int:
    """Search until ``config.trials`` trials have ended, and report; return 0, or 1 if no trial succeeded.

    Raises:
        TrainingError: the search is not possible, or its trials fail one after the other.
    """
    terminal = terminal or Terminal()
    with open_study_folder(config) as folder:
        study = open_study(folder, config)
        again = take_up(study)
        done = len(ended_trials(study))
        left = max(0, config.trials - done)
        _begin(study, config, folder, terminal, done=done, again=again)
        if left:
            _search(study, config, folder, left, terminal)
        return report_study(study, config, folder, terminal)


def _begin(
    study: Study, config: TuneConfig, folder: Path, terminal: Terminal, *, done: int, again: int
) -> None:
    ranges = ", ".join(map(str, config.ranges))
    if done or again:
        unfinished = f", and {again} that did not come to their end" if again else ""
        terminal.say(f"going on in {folder}: {done} of {config.trials} trials are done{unfinished}")
        return
    is_named = config.dataset in NAMED_DATASETS
    length = f" of {config.epochs} epochs or fewer" if is_named or "epochs" in config.given else ""
    terminal.say(f"searching {ranges} in {folder}, {config.trials} trials{length}")
    usual = {each.name: each.drawn_as(getattr(config, each.name)) for each in config.ranges}
    # The recipe comes first, so that the search can only gain on it. A folder's is known once it is read.
    if is_named and None not in usual.values():
        study.enqueue_trial(usual)


def _search(study: Study, config: TuneConfig, folder: Path, left: int, terminal: Terminal) -> None:
    jobs = min(config.jobs, left)
    if jobs == 1:
        search(study, config, folder, _counting_down(left), terminal)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    remaining = context.Value("q", left)
    threads = config.threads or max(1, len(os.sched_getaffinity(0)) // jobs)
    settings = config.model_dump(mode="json", include=set(config.given)) | {"threads": threads}
    workers = [
        context.Process(target=_work, args=(settings, str(folder), number, remaining, os.getpid()))
        for number in range(1, jobs + 1)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        raise
    _check_workers([worker.exitcode for worker in workers])


def _check_workers(statuses: list[int | None]) -> None:
    if failed := [status for status in statuses if status]:
        reason = "see above" if _FAILED in failed else f"exit status {failed[0]}: out of memory, or ended"
        raise RunError(
            f"{len(failed)} of {len(statuses)} processes did not come to their end ({reason}); run the same "
            "command again to go on"
        )


def _work(settings: dict[str, Any], folder: str, number: int, remaining: Any, parent: int) -> None:
    """Search in a process of its own, which ends with the one that started it."""
    try:
        end_with(parent)
    except ProcessLookupError:
        sys.exit(_FAILED)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says what is to be said
    config = TuneConfig.model_validate(settings)

    def may_begin() -> bool:
        with remaining.get_lock():
            remaining.value -= 1
            return bool(remaining.value >= 0)

    try:
        search(open_study(Path(folder), config, worker=number), config, Path(folder), may_begin, Terminal())
    except TrainingError as error:
        print(f"foldserve tune: {error}", file=sys.stderr, flush=True)
        sys.exit(_FAILED)


def _counting_down(count: int) -> Callable[[], bool]:
    left = iter(range(count))
    return lambda: next(left, None) is not None
