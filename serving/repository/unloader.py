"""Unloads models in the background: finishes their accepted requests, then frees their memory."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from foldserve.serving.freed_memory import return_memory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foldserve.serving.model.served_model import ServedModel

# A slow model may take minutes to empty its queue, which is bounded; only its own callers wait for that.
_DRAIN_S = 600.0

_log = logging.getLogger(__name__)


class ModelUnloader:
    """Drains unloaded models, each in a thread of its own. May be used from any thread."""

    def __init__(self) -> None:
        self._draining: set[ServedModel] = set()

    def unload(self, model: ServedModel | None) -> threading.Thread | None:
        """Drain and free a model, if one is given; return the thread that does it."""
        if model is None:
            return None
        self._draining.add(model)
        # In a list that the thread empties: its arguments must not hold the model when the memory is freed.
        thread = threading.Thread(target=self._drain, args=([model],), name="drain", daemon=True)
        thread.start()
        return thread

    def close(self, serving: Iterable[ServedModel], grace_s: float) -> None:
        """Close ``serving`` and all models that are still draining, within ``grace_s`` seconds altogether."""
        give_up_s = time.monotonic() + grace_s
        for model in {*serving, *self._draining}:
            model.close(max(0.0, give_up_s - time.monotonic()))

    def _drain(self, only: list[ServedModel]) -> None:
        model = only.pop()
        model.close(_DRAIN_S)
        self._draining.discard(model)
        _log.info(
            "%s/%d (SHA-256 %.12s) drained and unloaded", model.name, model.version, model.verified.sha256
        )
        del model
        return_memory()
