"""Restores the state of a run from ``last.pt``, and checks that it is of this run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foldserve.text import escaped
from foldserve.training.checkpoint import check_weights, load_checkpoint
from foldserve.training.checkpoint_form import TrainerForm, read_form
from foldserve.training.engine.loop import empty_totals
from foldserve.training.errors import CheckpointError, RunError
from foldserve.training.models import is_import_path
from foldserve.training.run.messages import ended_by_patience
from foldserve.training.run.run_state import HISTORY_FIELDS, set_initial

if TYPE_CHECKING:
    from torch import Tensor

    from foldserve.imaging import DecodeRule, FitRule
    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.engine.loop import Trainer
    from foldserve.training.run.run_folder import RunFolder
    from foldserve.training.run.run_state import RunState

# The state that each optimizer keeps per weight.
_MOMENTS = {"sgd": frozenset({"momentum_buffer"}), "adamw": frozenset({"step", "exp_avg", "exp_avg_sq"})}


def preparation_rules(folder: RunFolder) -> tuple[DecodeRule, FitRule] | None:
    """Return how the run in ``folder`` decodes and fits pictures, None if it has not begun or is damaged."""
    try:
        last = load_checkpoint(folder.last) if folder.last.exists() else None
    except CheckpointError:  # resuming the run reports it
        return None
    return None if last is None else (last.image.decode, last.image.fit)


def resume_run(state: RunState, folder: RunFolder) -> bool:
    """Resume the run in ``folder`` from its last checkpoint; return False if there is none.

    Raises:
        RunError: the checkpoint is damaged, or is of other data.
    """
    process_group = state.trainer.process_group
    try:
        found = (
            load_checkpoint(folder.last) if process_group.is_main_process and folder.last.exists() else None
        )
        checkpoint = process_group.broadcast(found)
        if checkpoint is None:
            return False
        check_same_data(checkpoint, state.facts)
        _restore(state, checkpoint)
    except Exception as error:  # given a wrong state, optimizer and scaler may raise any error
        reason = escaped(" ".join(str(error).split())) or type(error).__name__
        raise RunError(
            f"the run cannot be resumed: {reason}; use another --run-dir, or delete the folder"
        ) from error
    return True


def _restore(state: RunState, checkpoint: Checkpoint) -> None:
    if checkpoint.trainer is None:
        raise CheckpointError("its last checkpoint has no state to resume from")
    trainer, saved = state.trainer, read_form(TrainerForm, checkpoint.trainer)
    _check_progress(trainer, saved["step"], saved["history"])
    check_weights(trainer.model.network, checkpoint.weights)
    _check_class_weights(trainer, saved["class_weights"])
    _load_losses(trainer, saved["pruning"])
    trainer.model.network.load_state_dict(checkpoint.weights)
    set_initial(state, frozenset(saved["initial"]))
    _load_moments(trainer, saved["optimizer"]["state"])
    if trainer.average is not None and checkpoint.ema_weights is not None:
        check_weights(trainer.model.network, checkpoint.ema_weights)
        trainer.average.load(checkpoint.ema_weights)
    if saved["scaler"]:
        trainer.precision.scaler.load_state_dict(saved["scaler"])
    if (there := saved["totals"]) is not None:
        totals = trainer.totals = empty_totals(trainer)
        if there.losses.shape != totals.losses.shape or there.correct.shape != totals.correct.shape:
            raise CheckpointError(f"its checkpoint has the losses of {there.losses.numel()} steps per epoch")
        totals.losses.copy_(there.losses)
        totals.correct.copy_(there.correct)
        totals.seen, totals.elapsed_s = there.seen, there.elapsed_s
    trainer.step = saved["step"]
    state.history = saved["history"]
    if trainer.budget is not None:
        trainer.budget.spent_s = saved["spent_s"]
        trainer.planned_steps = saved["planned_steps"]


def extend_run(state: RunState, changed: frozenset[str]) -> None:
    """Let a restored run go on past where it was to end, by the settings ``changed``.

    An epoch that was cut short counts as a whole one.

    Raises:
        RunError: its patience has ended it, and that is none of ``changed``.
    """
    trainer, done = state.trainer, len(state.history)
    trainer.planned_steps = None
    trainer.step = max(trainer.step, done * trainer.steps_per_epoch)
    if state.is_out_of_patience and "patience" not in changed:
        raise RunError(f"the run was {ended_by_patience(state)}; to go on, give a larger --patience, too")


def _check_class_weights(trainer: Trainer, saved: Tensor | None) -> None:
    now = trainer.class_weights
    is_same = (now is None) == (saved is None) and (
        now is None or saved is None or (now.shape == saved.shape and torch.equal(now.cpu(), saved))
    )
    if not is_same:
        raise CheckpointError("it began with other class weights than --class-weights gives now")


def _load_losses(trainer: Trainer, saved: Any) -> None:
    pruning = trainer.pruning
    if pruning is None:
        return
    if saved is None or not saved.before.shape == saved.latest.shape == pruning.before.shape:
        raise CheckpointError(f"its checkpoint has not the losses of {len(pruning.before)} images")
    pruning.before.copy_(saved.before)
    pruning.latest.copy_(saved.latest)


def _check_progress(trainer: Trainer, step: int, history: list[dict[str, Any]]) -> None:
    """Check that the step is one of this run, and that there are figures of each epoch before it."""
    if len(history) > trainer.config.epochs:
        raise CheckpointError(
            f"it has {len(history)} epochs already, and --epochs is {trainer.config.epochs}: give more"
        )
    # A time limit or a larger number of epochs may have ended the last epoch early.
    whole, rest = divmod(step, trainer.steps_per_epoch)
    if step > trainer.total_steps or len(history) not in {whole, whole + (rest > 0)}:
        raise CheckpointError(
            f"its checkpoint is at step {step} of {trainer.total_steps} with the figures of {len(history)} "
            f"epochs of {trainer.steps_per_epoch} steps"
        )
    for record in history:
        needed = {*HISTORY_FIELDS, f"validation_{trainer.config.select.replace('-', '_')}"}
        if missing := sorted(needed - record.keys()):
            raise CheckpointError(f"its checkpoint has an epoch without {missing[0]}")


def _load_moments(trainer: Trainer, saved: Any) -> None:
    """Restore the optimizer's state per weight; its settings are those of this run's config.

    Raises:
        CheckpointError: the state is of another optimizer, or of other weights.
    """
    optimizer = trainer.optimizer
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # A custom network may have weights that do not affect the loss, for which no state is kept.
    if not is_import_path(trainer.config.arch) and len(optimizer.state) not in (0, len(parameters)):
        raise CheckpointError(
            f"its optimizer has state for {len(optimizer.state)} of {len(parameters)} weights"
        )
    expected = _MOMENTS[trainer.config.optimizer]
    for parameter, moments in optimizer.state.items():
        for name in expected ^ moments.keys():
            raise CheckpointError(f"its optimizer is not {trainer.config.optimizer}: see {name!r}")
        for name, value in moments.items():
            shape = () if name == "step" else parameter.shape
            if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != torch.float32:
                raise CheckpointError(
                    f"its optimizer's {name} does not fit a weight of shape {list(parameter.shape)}"
                )


def check_same_data(checkpoint: Checkpoint, facts: Checkpoint) -> None:
    """Check that ``checkpoint`` is of the same data and network as ``facts``.

    Raises:
        CheckpointError: the data or the network differ.
    """
    # A folder or a table may have moved: its fingerprint tells whether it is the same.
    place = () if checkpoint.fingerprint and facts.fingerprint else ("dataset",)
    for name in (*place, "labels", "image", "arch_args", "mean", "std"):
        there, here = getattr(checkpoint, name), getattr(facts, name)
        if there != here:
            raise CheckpointError(
                f"its checkpoint has {name} {_shown(there)}, the data set now gives {_shown(here)}"
            )
    if checkpoint.fingerprint not in ("", facts.fingerprint):
        raise CheckpointError("the images, or the folders they are in, have changed since it began")


def _shown(fact: Any) -> str:
    """Return ``fact`` for a message; of a long tuple, its length and the first items."""
    if isinstance(fact, tuple) and len(fact) > 10:
        return f"{len(fact)} ({', '.join(map(str, fact[:3]))}, ...)"
    return str(fact)
