"""Models that nobody finds any more: what they accepted is finished, then they are gone, memory and all."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from foldserve.serving.freed_memory import return_memory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foldserve.serving.model.served_model import ServedModel

# A queue is bounded, but a slow model's may take minutes to empty; nobody waits for it but its callers.
_DRAIN_S = 600.0

_log = logging.getLogger(__name__)


class ModelUnloader:
    """Drains models beside what replaced them, each in a thread of its own; for any thread."""

    def __init__(self) -> None:
        self._draining: set[ServedModel] = set()

    def unload(self, model: ServedModel | None) -> threading.Thread | None:
        """Drain a model, if there is one, and return the thread that does it."""
        if model is None:
            return None
        self._draining.add(model)
        # In a list that is emptied: the thread itself must not hold the model when its memory is returned.
        thread = threading.Thread(target=self._drain, args=([model],), name="drain", daemon=True)
        thread.start()
        return thread

    def close(self, serving: Iterable[ServedModel], grace_s: float) -> None:
        """Stop ``serving`` and all that are still draining; what waits has ``grace_s`` seconds to finish."""
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
