"""From an artifact to a model that serves, or the reason why not."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.errors import DeviceError, ServingError
from serving.model import ServedModel, open_artifact
from serving.shown import legible

if TYPE_CHECKING:
    from serving.artifact import Artifact
    from serving.model import ModelSettings, OnLost

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served; ``error`` is what was raised."""

    reason: str
    error: Exception


def start_model(
    name: str, version: int, artifact: Artifact, settings: ModelSettings, on_lost: OnLost
) -> ServedModel | Refusal:
    """Open and prove an artifact, and start serving it."""
    where = f"{name}/{version}"
    started_s = time.monotonic()
    try:
        verified = open_artifact(artifact, settings)
        model = ServedModel(name, version, verified, settings, on_lost)
    except Exception as error:  # becomes the reason, and no other version's fault
        return explain_refusal(where, error)
    _log.info(
        "%s ready on %s (%s) in %.2f s: %d golden pairs reproduced, largest difference %.2g, "
        "instances: %d and %d for full batches, threads of each: %d, batch invariant: %s, SHA-256 %s",
        where,
        verified.session.provider,
        verified.session.choice,
        time.monotonic() - started_s,
        verified.golden_count,
        verified.largest_difference,
        model.instance_count,
        model.spare_count,
        verified.threads,
        "yes" if verified.batch_invariant else "no",
        verified.sha256,
    )
    return model


def explain_refusal(where: str, error: Exception) -> Refusal:
    """Log why a version is refused, and return it in words that callers may see."""
    if isinstance(error, DeviceError):
        _log.error("%s refused: %s", where, error, exc_info=error)
        return Refusal("its device cannot run it; the server's log says more", error)
    if isinstance(error, ServingError):
        _log.error("%s refused: %s", where, legible(str(error)))
        return Refusal(legible(str(error)), error)
    _log.error("%s refused", where, exc_info=error)
    return Refusal(legible(f"loading failed: {type(error).__name__}: {error}"), error)
