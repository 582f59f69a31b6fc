"""Writes the checkpoints of a run while it trains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from foldserve.training.checkpoint import save_checkpoint
from foldserve.training.engine.loop import check_finite
from foldserve.training.run.epoch_choice import EpochChoice

if TYPE_CHECKING:
    from foldserve.training.datasets import Examples
    from foldserve.training.run.run_folder import RunFolder
    from foldserve.training.run.run_state import RunState


class Saver:
    """Writes last.pt every ``checkpoint_every`` seconds and per epoch, and best.pt after an epoch to keep."""

    def __init__(self, state: RunState, training: Examples, validation: Examples, folder: RunFolder) -> None:
        self._state, self._training, self._folder = state, training, folder
        self._choice = EpochChoice(state.trainer.config, validation.labels)
        self._is_writer = state.trainer.process_group.is_main_process
        self._saved_at = time.monotonic()

    def after_step(self) -> None:
        """Write last.pt if it is due."""
        if (
            self._is_writer
            and time.monotonic() - self._saved_at >= self._state.trainer.config.checkpoint_every
        ):
            self._save_last()

    def after_epoch(self) -> None:
        """Write best.pt if this epoch is to be kept, then last.pt, then the epoch's figures."""
        if not self._is_writer:
            return
        history, figure = self._state.history, self._state.selected_by
        if self._choice.keeps_last([record[figure] for record in history]):
            save_checkpoint(self._folder.best, self._state.to_checkpoint(resumable=False))
        self._save_last()
        self._folder.append_record(history[-1])

    def _save_last(self) -> None:
        check_finite(self._state.trainer, self._training)
        save_checkpoint(self._folder.last, self._state.to_checkpoint(resumable=True))
        self._saved_at = time.monotonic()
