"""From an artifact to a model that serves, or the reason why not."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.errors import DeviceError, LoadsHangError, ServingError
from serving.model import ServedModel, open_artifact
from serving.processors import usable_processors
from serving.retirement import return_memory
from serving.session import cuda_is_present
from serving.shown import legible

if TYPE_CHECKING:
    from serving.artifact import Artifact
    from serving.model import ModelSettings, OnLost, VerifiedModel
    from serving.session import Device
    from serving.time_limit import StopSignal, TimeLimit

_log = logging.getLogger(__name__)


# Loads side by side hold their files in memory, twice: a bound for machines of many processors.
_MOST_AT_A_TIME = 4


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served; ``error`` is what was raised."""

    reason: str
    error: Exception


@dataclass(frozen=True)
class LoadOutcome:
    """A load attempt that has ended after ``seconds``; ``refusal`` says why it failed, None: it did not."""

    name: str
    version: int
    seconds: float
    refusal: str | None


def loads_at_a_time(device: Device) -> int:
    """Return how many loads may run side by side; on a GPU they would take its memory from each other."""
    return 1 if device != "cpu" and cuda_is_present() else min(usable_processors(), _MOST_AT_A_TIME)


def start_model(
    name: str,
    version: int,
    artifact: Artifact,
    settings: ModelSettings,
    on_lost: OnLost,
    *,
    time_limit: TimeLimit,
) -> ServedModel | Refusal:
    """Open and prove an artifact within the time limit, and start serving it.

    Raises:
        LoadsHangError: too many other loads do not end; this one was not begun.
    """
    where = f"{name}/{version}"
    started_s = time.monotonic()
    try:
        verified = time_limit.run(where, lambda stop: _open(artifact, settings, stop))
        model = ServedModel(name, version, verified, settings, on_lost)
    except LoadsHangError:
        raise
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


def _open(artifact: Artifact, settings: ModelSettings, stop: StopSignal) -> VerifiedModel:
    """Open and prove an artifact; what a failure leaves in memory is returned whenever it comes."""
    try:
        return open_artifact(artifact, settings, stop)
    except Exception:
        return_memory()
        raise


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
