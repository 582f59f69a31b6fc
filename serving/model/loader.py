"""Loads an artifact: opens and verifies it and starts its model, or returns the reason for refusing it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.errors import DeviceError, FoldserveError, LoadsHangError
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import cuda_is_present
from foldserve.runtime.verified_model import open_artifact
from foldserve.serving.freed_memory import return_memory
from foldserve.serving.model.served_model import ServedModel
from foldserve.text import legible

if TYPE_CHECKING:
    from foldserve.artifact.format import Artifact
    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.runtime.options import Device
    from foldserve.runtime.time_limit import StopSignal, TimeLimit
    from foldserve.runtime.verified_model import VerifiedModel
    from foldserve.serving.model.served_model import OnLost

_log = logging.getLogger(__name__)


# Each load holds its files in memory twice; this bounds that on machines with many CPUs.
_MAX_PARALLEL_LOADS = 4


@dataclass(frozen=True)
class Refusal:
    """Says why a version is not served, in words for callers; ``error`` is the exception behind it."""

    reason: str
    error: Exception


@dataclass(frozen=True)
class LoadOutcome:
    """Describes a load attempt that took ``seconds``; ``refusal`` is the reason if it failed, else None."""

    name: str
    version: int
    seconds: float
    refusal: str | None


def loads_at_a_time(device: Device) -> int:
    """Return how many loads may run at a time: one on a GPU, where they would compete for its memory."""
    return 1 if device != "cpu" and cuda_is_present() else min(usable_cpus(), _MAX_PARALLEL_LOADS)


def start_model(
    name: str,
    version: int,
    artifact: Artifact,
    settings: ModelSettings,
    on_lost: OnLost,
    *,
    time_limit: TimeLimit,
) -> ServedModel | Refusal:
    """Open and verify an artifact within the time limit, and start its model.

    Raises:
        LoadsHangError: too many other loads hang; this one was not started.
    """
    where = f"{name}/{version}"
    started_s = time.monotonic()
    try:
        verified = time_limit.run(where, lambda stop: _open(artifact, settings, stop))
        model = ServedModel(name, version, verified, settings, on_lost)
    except LoadsHangError:
        raise
    except Exception as error:  # becomes the reason; other versions are not affected
        return explain_refusal(where, error)
    _log.info(
        "%s ready on %s (%s) in %.2f s: %d golden pairs reproduced, largest difference %.2g, "
        "instances: %d, overflow instances: %d, threads per instance: %d, batch invariant: %s, SHA-256 %s",
        where,
        verified.session.provider,
        verified.session.choice,
        time.monotonic() - started_s,
        verified.golden_count,
        verified.largest_difference,
        model.instance_count,
        model.overflow_count,
        verified.threads,
        "yes" if verified.batch_invariant else "no",
        verified.sha256,
    )
    return model


def _open(artifact: Artifact, settings: ModelSettings, stop: StopSignal) -> VerifiedModel:
    """Open and verify an artifact; after a failure, at any time, return the freed memory to the system."""
    try:
        return open_artifact(artifact, settings, stop)
    except Exception:
        return_memory()
        raise


def explain_refusal(where: str, error: Exception) -> Refusal:
    """Log why a version is refused; return the reason in words that callers may see."""
    if isinstance(error, DeviceError):
        _log.error("%s refused: %s", where, error, exc_info=error)
        return Refusal("the device cannot run it; see the server's log", error)
    if isinstance(error, FoldserveError):
        _log.error("%s refused: %s", where, legible(str(error)))
        return Refusal(legible(str(error)), error)
    _log.error("%s refused", where, exc_info=error)
    return Refusal(legible(f"loading failed: {type(error).__name__}: {error}"), error)
