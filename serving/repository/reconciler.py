"""Brings the served versions of one model in line with its folder: plans, and applies the plan."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.errors import DeviceError, DeviceLostError, LoadsHangError
from foldserve.runtime.session import CUDA_PROVIDER
from foldserve.runtime.time_limit import TimeLimit
from foldserve.serving.model.loader import LoadOutcome, Refusal, explain_refusal, start_model
from foldserve.serving.repository.index import ModelIndex, VersionEntry
from foldserve.serving.repository.log_once import LogOnce
from foldserve.serving.repository.model_faults import settings_or_fault
from foldserve.serving.repository.model_file_cache import ModelFileCache
from foldserve.serving.repository.plan import (
    Current,
    Keep,
    Load,
    Observed,
    Refuse,
    Remove,
    Unload,
    Wait,
    plan,
)
from foldserve.serving.repository.unloader import ModelUnloader
from foldserve.serving.repository.version_files import LoadFailure, VersionFiles
from foldserve.text import legible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.layout import Layout
    from foldserve.serving.repository.plan import Action
    from foldserve.serving.repository.scanner import Fingerprint, FoundModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Attempt:
    """Describes one reconciliation; ``sources`` are the versions that may be loaded, with their settings."""

    name: str
    sources: Mapping[int, tuple[Fingerprint, ModelSettings]]
    wait_for_writes: bool
    at_startup: bool


class Reconciler:
    """Loads, replaces and unloads the versions of ``index``, one model per call.

    A version that is replaced goes on serving until its successor has reproduced its golden pairs; it is then
    drained in the background. Models may be reconciled at the same time, each by one thread only.
    """

    def __init__(
        self,
        index: ModelIndex,
        layout: Layout,
        settings: ModelSettings,
        on_load: Callable[[LoadOutcome], None],
        *,
        settle_s: float,
        time_limit: TimeLimit | None = None,
    ) -> None:
        """Prepare to load from ``layout``; the arguments are those of `ModelRepository`."""
        self._index = index
        self._device = settings.device
        self._on_load = on_load
        self._stopping = threading.Event()
        self._time_limit = time_limit or TimeLimit(math.inf)
        self._files = VersionFiles(layout, settle_s, time_limit=self._time_limit)
        self._settings = ModelFileCache(layout.folder, settings, settle_s)
        self._unloaded: set[str] = set()  # models that stay unloaded until they are loaded by name
        self._missing: dict[str, frozenset[int]] = {}  # versions that the last scan did not find
        self._settled: dict[str, FoundModel] = {}  # models as last found, if nothing of them is waited for
        self._unloader = ModelUnloader()
        self._log_once = LogOnce()

    def has_changed(self, name: str, found: FoundModel | None) -> bool:
        """Tell whether a model is to be reconciled: it has changed, is waited for, or is gone."""
        return found is None or (name not in self._unloaded and self._settled.get(name) != found)

    def reconcile(
        self, name: str, found: FoundModel | None, *, wait_for_writes: bool = False, at_startup: bool = False
    ) -> dict[int, str]:
        """Bring one model in line with its folder; return its refused versions with the reasons.

        An unexpected error is logged and refuses this model's versions only. With ``wait_for_writes``, files
        that are incomplete or missing are given time.

        Raises:
            DeviceError, DeviceLostError: ``at_startup``, the device asked for by name cannot run the model.
        """
        if self._stopping.is_set() or (found and name in self._unloaded):  # since the folder was scanned
            return {}
        try:
            refused = self._reconcile(name, found, wait_for_writes=wait_for_writes, at_startup=at_startup)
        except (DeviceError, DeviceLostError):
            raise
        except Exception as error:
            reason = legible(f"loading from its folder failed: {type(error).__name__}: {error}")
            self._log_once.update(f"{name} (folder)", reason, error)
            versions = found.versions if found else {}
            for version in versions:
                self._index.explain(name, version, "UNAVAILABLE", reason)
            return dict.fromkeys(versions, reason)
        self._log_once.update(f"{name} (folder)", "")
        return refused

    def unload(self, name: str, reason: str) -> list[threading.Thread]:
        """Unload a model until it is loaded by name. Returns the threads that are draining its versions."""
        self._unloaded.add(name)
        drains = [self._unload(name, version, reason) for version in self._index.versions_of(name)]
        return [drain for drain in drains if drain]

    def forget_failures(self, name: str) -> None:
        """Make the next `reconcile` of a model read its settings again and retry its refused versions."""
        self._unloaded.discard(name)
        self._settings.forget(name)
        for entry in self._index.versions_of(name).values():
            if entry.model is None or entry.reason:
                self._files.forget(name, entry.version)

    def stop(self) -> None:
        """Interrupt the loads that are running, and start no others."""
        self._stopping.set()
        self._time_limit.close()

    def close(self, grace_s: float) -> None:
        """Close all models, each once its queue is empty or ``grace_s`` seconds have passed for all."""
        self._unloader.close(self._index.ready_models(), grace_s)

    def _reconcile(
        self, name: str, found: FoundModel | None, *, wait_for_writes: bool, at_startup: bool
    ) -> dict[int, str]:
        self._settled.pop(name, None)
        default = self._index.default_of(name)
        observed, sources = self._observe(name, found, wait_for_writes=wait_for_writes)
        attempt = _Attempt(name, sources, wait_for_writes, at_startup)
        refused: dict[int, str] = {}
        tried: set[int] = set()
        while True:
            actions = plan(observed, self._current(attempt, tried), wait_for_writes=wait_for_writes)
            for action in actions:
                refused |= self._apply(attempt, action)
                if isinstance(action, Load):
                    tried.add(action.version)
                    break  # the rest depends on how it ended: plan again
            else:
                break
        self._report_default(name, default)
        self._report_promotion(name, observed)
        missing = frozenset(self._index.versions_of(name)) - observed.versions
        if missing:
            self._missing[name] = missing
        else:
            self._missing.pop(name, None)
            if found and observed.policy and not any(isinstance(action, Wait) for action in actions):
                self._settled[name] = found
        return refused

    def _observe(
        self, name: str, found: FoundModel | None, *, wait_for_writes: bool
    ) -> tuple[Observed, Mapping[int, tuple[Fingerprint, ModelSettings]]]:
        """Return the input of the plan, and the sources of `_Attempt`: none if the settings are invalid."""
        if found is None:
            if not self._index.versions_of(name):
                self._index.promote(name, ())
            return Observed(), {}
        versions = frozenset(found.versions)
        settings = settings_or_fault(
            name, found, self._settings, self._log_once, wait_for_writes=wait_for_writes
        )
        if isinstance(settings, str):
            return Observed(versions, fault=settings), {}
        if settings is None:
            return Observed(versions), {}
        run_as, policy, promoted = settings
        self._index.promote(name, promoted)
        sources = {version: (fingerprint, run_as) for version, fingerprint in found.versions.items()}
        return Observed(versions, policy, promoted=promoted), sources

    def _report_default(self, name: str, before: int | None) -> None:
        """Log that requests that name no version get another version than ``before``."""
        now = self._index.default_of(name)
        if None not in (before, now) and now != before:
            _log.info("%s: version %d answers requests that name none (before: %d)", name, now, before)

    def _report_promotion(self, name: str, observed: Observed) -> None:
        """Log that another version than the promoted one answers, and when that is over."""
        default, promoted = self._index.default_of(name), observed.promoted
        reason = ""
        if promoted and default not in (None, promoted[0]):
            entry = self._index.get(name, promoted[0])
            if entry is None or entry.state == "UNAVAILABLE":  # not still loading
                reason = f"version {promoted[0]} is promoted, but {default} answers"
        self._log_once.update(f"{name} (promoted)", reason)

    def _current(self, attempt: _Attempt, tried: set[int]) -> Current:
        """Return the state to plan from. Versions ``tried`` in this attempt are not tried again."""
        name, known = attempt.name, self._index.versions_of(attempt.name)
        outcomes = {
            version: self._files.last_outcome(name, version)
            for version, source in attempt.sources.items()
            if version in tried
            or not self._files.is_due(name, version, *source, wait_for_writes=attempt.wait_for_writes)
        }
        return Current(
            known=frozenset(known),
            serving=frozenset(version for version, entry in known.items() if entry.model is not None),
            missing=self._missing.get(name, frozenset()),
            outcomes=outcomes,
            default=self._index.default_of(name),
        )

    def _apply(self, attempt: _Attempt, action: Action) -> dict[int, str]:
        """Apply one action; return its version with the reason if the version's files are not served."""
        name = attempt.name
        match action:
            case Load(version):
                reason = self._load(attempt, version)
                return {version: reason} if reason else {}
            case Keep(version):
                self._index.explain(name, version, "UNAVAILABLE", "")
            case Refuse(version, reason):
                self._index.explain(name, version, "UNAVAILABLE", reason)
                return {version: reason}
            case Unload(version, reason):
                self._unload(name, version, reason)
            case Remove(version):
                self._remove(name, version)
        return {}

    def _load(self, attempt: _Attempt, version: int) -> str:
        """Load a version and serve it; return why it does not serve, "" if it does or is waited for."""
        try:
            return self._read_and_start(attempt, version)
        except LoadsHangError as error:  # too many others are running: at a later scan
            self._files.forget(attempt.name, version)
            self._index.explain(attempt.name, version, "LOADING", str(error))
            return str(error)

    def _read_and_start(self, attempt: _Attempt, version: int) -> str:
        name, (fingerprint, settings) = attempt.name, attempt.sources[version]
        started_s = time.monotonic()
        read = self._files.read(name, version, fingerprint, settings, wait_for_writes=attempt.wait_for_writes)
        if read is None:  # a load by name read it meanwhile
            return ""
        if isinstance(read, LoadFailure) and not read.is_permanent:
            self._index.explain(name, version, "LOADING", legible(f"incomplete: {read.error}"))
            return ""
        before = self._index.get(name, version)
        if isinstance(read, LoadFailure):
            loaded: ServedModel | Refusal = explain_refusal(f"{name}/{version}", read.error)
        elif before and before.model and before.model.is_made_of(read, settings):
            self._record(name, version, "")
            return ""
        else:
            self._index.explain(name, version, "LOADING", "loading")
            loaded = start_model(name, version, read, settings, self._on_lost, time_limit=self._time_limit)
        reason = loaded.reason if isinstance(loaded, Refusal) else ""
        self._on_load(LoadOutcome(name, version, time.monotonic() - started_s, reason or None))
        if not isinstance(loaded, Refusal):
            self._files.record_outcome(name, version, "")
            self._unloader.unload(self._index.put(VersionEntry(name, version, "READY", "", loaded)))
            return ""
        if (
            attempt.at_startup
            and self._device == "cuda"
            and isinstance(loaded.error, DeviceError | DeviceLostError)
        ):
            raise loaded.error
        if isinstance(loaded.error, DeviceLostError):
            self._on_lost(CUDA_PROVIDER, loaded.error)
        self._record(name, version, reason)
        return reason

    def _record(self, name: str, version: int, reason: str) -> None:
        self._files.record_outcome(name, version, reason)
        self._index.explain(name, version, "UNAVAILABLE", reason)

    def _unload(self, name: str, version: int, reason: str) -> threading.Thread | None:
        """Stop serving a version that stays in the index; return the thread that drains it."""
        self._files.forget(name, version)
        if not self._index.is_serving(name, version):
            self._index.explain(name, version, "UNAVAILABLE", reason)
            return None
        return self._unloader.unload(self._index.put(VersionEntry(name, version, "UNAVAILABLE", reason)))

    def _remove(self, name: str, version: int) -> None:
        """Drop a version whose folder is gone, and the model with its last one."""
        self._files.forget(name, version)
        self._unloader.unload(self._index.remove(name, version))
        if not self._index.versions_of(name):
            self._settings.forget(name)
            self._unloaded.discard(name)
        _log.info("%s/%d is gone from the repository", name, version)

    def _on_lost(self, provider: str, error: DeviceLostError) -> None:
        """Unload all models of a lost device; called from the thread that noticed the loss."""
        lost = [model for model in self._index.ready_models() if model.verified.session.provider == provider]
        for model in lost:
            reason = f"the device was lost: {error}"
            self._settled.pop(model.name, None)  # an older version may serve in its place
            self._files.record_outcome(model.name, model.version, reason)
            entry = self._index.get(model.name, model.version)
            if entry is not None and entry.model is model:
                unavailable = VersionEntry(model.name, model.version, "UNAVAILABLE", reason)
                self._unloader.unload(self._index.put(unavailable))
                _log.error("%s/%d: %s", model.name, model.version, reason)
