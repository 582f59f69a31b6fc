"""Ends a run: judges its best weights on the test images, writes the report, and tells a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foldserve.text import escaped
from foldserve.training.chance import chance_warning
from foldserve.training.checkpoint import load_checkpoint, save_checkpoint
from foldserve.training.datasets import Examples
from foldserve.training.datasets.registry import fingerprint_of
from foldserve.training.engine.evaluation import evaluate
from foldserve.training.errors import CheckpointError, RunError
from foldserve.training.run.fonts import missing_font_line
from foldserve.training.run.messages import ended_by_patience, result_text, what_to_try
from foldserve.training.run.report import write_report
from foldserve.training.run.resuming import check_same_data
from foldserve.training.run.run_state import HISTORY_FIELDS

if TYPE_CHECKING:
    from foldserve.terminal import Terminal
    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.evaluation import Evaluation
    from foldserve.training.run.run_folder import RunFolder
    from foldserve.training.run.run_state import RunState


def early_end(state: RunState) -> str:
    """Return why the run ended before its last epoch."""
    trainer = state.trainer
    if trainer.step >= trainer.total_steps:
        allowed = f"the time limit allows {trainer.step:,} steps, in {len(state.history)} epochs"
        if trainer.is_too_short_for_policy:
            config = trainer.config
            allowed += f"; too few for --auto-augment {config.auto_augment} ({config.auto_augment_steps:,})"
        return allowed
    return ended_by_patience(state)


def evaluate_and_report(
    state: RunState, dataset: Dataset, folder: RunFolder, terminal: Terminal
) -> dict[str, Any]:
    """Evaluate the best weights on the test images, only here; write the report; mark the run as finished.

    Returns:
        The figures on the test images, in the main process; nothing in the others.
    """
    process_group, device = state.trainer.process_group, state.trainer.model.mean.device
    best = process_group.broadcast(
        _load_best(state, folder) if process_group.is_main_process else state.facts
    )
    test = evaluate(
        best.build().to(device), Examples(dataset.test_images, dataset.test_labels), process_group
    )
    if not process_group.is_main_process:
        return {}
    figures = _test_metrics(test, dataset)
    best = replace(best, metrics=best.metrics | figures)
    write_report(
        folder.report,
        best=best,
        history=state.history,
        test=test,
        dataset=dataset,
        config=state.trainer.config,
    )
    save_checkpoint(folder.best, best)
    if warning := missing_font_line(dataset.labels):
        terminal.say(warning)
    if warning := chance_warning(best.metrics):
        terminal.say(f"{warning}. {what_to_try(state)}")
    terminal.say(
        f"{result_text(best, state.trainer.config)}; checkpoint {folder.best}, report {folder.report}"
    )
    return figures


def _test_metrics(test: Evaluation, dataset: Dataset) -> dict[str, Any]:
    counts = torch.bincount(dataset.test_labels, minlength=len(dataset.labels))
    return {
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_macro_f1": test.macro_f1,
        "test_images": len(dataset.test_labels),
        "test_largest_class": int(counts.max()) / len(dataset.test_labels),
    }


def _load_best(state: RunState, folder: RunFolder) -> Checkpoint:
    best = load_checkpoint(folder.best)
    try:
        check_same_data(best, state.facts)
    except CheckpointError as error:
        reason = escaped(str(error))
        raise CheckpointError(f"{folder.best} is not of this run: {reason}; delete the folder") from error
    if missing := [name for name in HISTORY_FIELDS if name not in best.metrics]:
        raise CheckpointError(f"{folder.best} is malformed: its metrics have no {missing[0]}")
    return best


def finished_summary(folder: RunFolder, config: TrainConfig) -> str | None:
    """Return the result of a finished run, whose best.pt has figures of the test images; else None.

    Raises:
        RunError: the images have changed since.
    """
    if not folder.best.exists():
        return None
    best = load_checkpoint(folder.best)
    if not best.metrics.keys() >= {"test_accuracy", *HISTORY_FIELDS}:
        return None
    if best.fingerprint and _has_changed(best, config):
        raise RunError(
            f"{folder.path} has a finished run on other images than {config.dataset} has now; use another "
            "--run-dir, or delete the folder"
        )
    return result_text(best, config)


def _has_changed(best: Checkpoint, config: TrainConfig) -> bool:
    """Return whether the images of a folder or table have changed since ``best``; False if they are gone."""
    place = config.data_dir or Path(config.dataset)
    return fingerprint_of(place, config.path_column, config.label_column) not in (None, best.fingerprint)
