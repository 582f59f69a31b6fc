"""The model repository: brings what is served in line with what is on disk, one proven version at a time."""

from __future__ import annotations

import logging
import math
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from foldserve.errors import ArtifactError, DeviceError, DeviceLostError, LoadsHangError
from foldserve.runtime.session import CUDA_PROVIDER
from foldserve.runtime.time_limit import TimeLimit
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.model.loader import LoadOutcome, Refusal, explain_refusal, loads_at_a_time, start_model
from foldserve.serving.repository.index import ModelIndex, Version
from foldserve.serving.repository.layout import Layout
from foldserve.serving.repository.log_once import LogOnce
from foldserve.serving.repository.model_faults import settings_or_fault
from foldserve.serving.repository.model_file_cache import SettingsReader
from foldserve.serving.repository.side_by_side import SideBySide
from foldserve.serving.repository.unloader import ModelUnloader
from foldserve.serving.repository.version_files import LoadFailure, VersionFiles
from foldserve.text import join_names, legible, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.scanner import FoundModel, Signature

_log = logging.getLogger(__name__)


class ModelRepository(ModelIndex):
    """Every version under ``folder``, loaded, replaced and unloaded as the folder changes.

    Models are followed side by side, each by one thread at a time. What is replaced goes on answering until
    its successor has proven itself, and is then drained beside it.
    """

    def __init__(
        self,
        folder: Path,
        settings: ModelSettings,
        on_load: Callable[[LoadOutcome], None] = lambda _: None,
        *,
        settle_s: float = 2.0,
        time_limit: TimeLimit | None = None,
        model_name: str | None = None,
    ) -> None:
        """Find the versions, none of them loaded yet.

        ``on_load`` is told of each load attempt that has ended, from the thread that loaded. What is wrong
        with files that are still changing is not said before they have not changed for ``settle_s`` seconds.
        Reading a version and proving it are done within ``time_limit`` each, where there is one.
        With ``model_name``, ``folder`` is that model's only version itself, as `Layout` says.

        Raises:
            ArtifactError: ``folder`` is not a folder that can be read, or plainly laid out otherwise.
        """
        super().__init__()
        self._layout = Layout(folder, model_name)
        self._layout.check()
        self._device = settings.device
        self._on_load = on_load
        self._stopping = threading.Event()
        self._time_limit = time_limit or TimeLimit(math.inf)
        self._models = SideBySide(loads_at_a_time(settings.device), fatal=(DeviceError, DeviceLostError))
        self._files = VersionFiles(self._layout, settle_s, time_limit=self._time_limit)
        self._settings = SettingsReader(folder, settings, settle_s)
        self._unloaded: set[str] = set()  # models that serve only once they are asked for by name
        self._missing_once: set[tuple[str, int]] = set()  # versions that were gone at the last look
        self._settled: dict[str, FoundModel] = {}  # models as last found where nothing is waited for
        self._retirement = ModelUnloader()
        self._notices = LogOnce()
        for name, found in self._layout.scan().items():
            for version in found.versions:
                self._explain(name, version, "LOADING", "loading")

    def load_all(self, only: Collection[str] | None = None) -> None:
        """Open and verify every version, or those of the models in ``only``; refused ones say why.

        Raises:
            ArtifactError: there is no model of a name in ``only``, or the folder cannot be read any more.
            DeviceError, DeviceLostError: the device asked for by name does not run the models; nothing can be
                served honestly.
        """
        models = self._layout.scan()
        if only is not None and (unknown := sorted(set(only) - models.keys())):
            raise ArtifactError(
                f"cannot load {join_names(unknown)}: the repository has {join_names(models) or 'none'}"
            )
        for name in models:
            if only is not None and name not in only:
                with self._models.alone(name):
                    self._leave_alone(name, "it waits to be loaded by RepositoryModelLoad")
        self._models.run(
            {name: partial(self._reconcile, name, found, at_startup=True) for name, found in models.items()}
        )

    def refresh(self) -> None:
        """Look at the folder once and follow what has changed in it.

        Returns once all of it has been tried but what takes long, which goes on beside.
        """
        try:
            models = self._layout.scan()
        except ArtifactError as error:
            self._notices.set("repository", f"{error}; what is served goes on being served")
            return
        self._notices.set("repository", "")
        self._models.run(
            {
                name: partial(self._reconcile, name, models.get(name), wait_for_writes=True)
                for name in sorted({*models, *self._table})
                if self._is_news(name, models.get(name)) and not self._models.is_busy(name)
            },
            leave_slow=True,
        )

    def load(self, name: str) -> None:
        """Look at a model's folder again: load what is new, changed or was refused, unload what is gone.

        Raises:
            NotFoundError: there is no such model in the folder.
            UnavailableError: none of its versions serves after it, or a newer one is refused; says why.
        """
        self._find_folder(name)
        with self._models.alone(name):
            found = self._find_folder(name)  # again: a load of it may just have ended
            self._unloaded.discard(name)
            self._settings.forget(name)
            for entry in self._table.get(name, {}).values():
                if entry.model is None or entry.reason:
                    self._files.forget(name, entry.version)
            refused = self._reconcile(name, found)
        reasons = "; ".join(f"{version}: {reason}" for version, reason in refused.items())
        if not self.is_ready(name, ""):
            raise UnavailableError(f"no version of model {quote(name)} serves: {reasons}")
        serving = self.find(name, "").version
        if any(version >= serving for version in refused):
            raise UnavailableError(f"model {quote(name)} serves as before, version {serving}: {reasons}")

    def unload(self, name: str) -> None:
        """Stop serving a model, having finished what it accepted; raises NotFoundError as `find`."""
        self._versions(name)
        with self._models.alone(name):
            self._versions(name)
            drains = self._leave_alone(name, "unloaded on request")
        for drain in drains:
            drain.join()

    def stop_loading(self) -> None:
        """Stop the loads under way, and begin none any more."""
        self._stopping.set()
        self._time_limit.close()

    def close(self, grace_s: float) -> None:
        """Stop loading, finish what waits in all queues within ``grace_s`` seconds, stop the instances."""
        self.stop_loading()
        self._retirement.close(self.ready_models(), grace_s)

    def _find_folder(self, name: str) -> FoundModel:
        found = self._layout.scan().get(name)
        if found is None or found.fault:
            detail = found.fault if found else "it is not in the repository's folder, or has no versions"
            raise NotFoundError(f"model {quote(name)} cannot be loaded: {detail}")
        return found

    def _is_news(self, name: str, found: FoundModel | None) -> bool:
        """Tell whether a model is to be followed: it has changed, is waited for, or is gone."""
        return found is None or (name not in self._unloaded and self._settled.get(name) != found)

    def _reconcile(
        self, name: str, found: FoundModel | None, *, wait_for_writes: bool = False, at_startup: bool = False
    ) -> dict[int, str]:
        """Bring one model in line with its folder, and return which of its versions are refused, and why.

        Whatever fails in it, the other models are followed all the same. With
        ``wait_for_writes``, what is not whole or has vanished is given time.
        """
        try:
            refused = self._bring_in_line(name, found, wait_for_writes=wait_for_writes, at_startup=at_startup)
        except (DeviceError, DeviceLostError):  # of the device asked for by name, at the start
            raise
        except Exception as error:
            reason = legible(f"following its folder failed: {type(error).__name__}: {error}")
            self._notices.set(f"{name} (folder)", reason, error)
            return self._refuse(name, found, reason)
        self._notices.set(f"{name} (folder)", "")
        return refused

    def _bring_in_line(
        self, name: str, found: FoundModel | None, *, wait_for_writes: bool, at_startup: bool
    ) -> dict[int, str]:
        """Bring up what is new first, and take down after it what it replaces; return as `_reconcile`."""
        refused: dict[int, str] = {}
        if self._stopping.is_set() or (found and name in self._unloaded):  # since this was looked for
            return refused
        self._settled.pop(name, None)
        versions = found.versions if found else {}
        brought: list[int] = []
        known = self._table.get(name, {}).keys()
        self._missing_once -= {(name, version) for version in versions}
        gone = {
            version for version in known - versions.keys() if self._is_gone(name, version, wait_for_writes)
        }
        settings = (
            settings_or_fault(name, found, self._settings, self._notices, wait_for_writes=wait_for_writes)
            if found
            else None
        )
        if isinstance(settings, str):
            refused = self._refuse(name, found, settings)
            if not versions:
                gone.clear()  # a folder that cannot be read: what was in it may still be there
        elif settings is not None:
            run_as, policy = settings
            present = (known | versions.keys()) - gone
            serving_count = 0
            for version in policy.candidates(present):
                if policy.is_enough(serving_count):
                    break
                if version in versions:
                    brought.append(version)
                    try:
                        reason = self._load_version(
                            name,
                            version,
                            versions[version],
                            run_as,
                            wait_for_writes=wait_for_writes,
                            at_startup=at_startup,
                        )
                    except LoadsHangError as error:  # at a later look
                        reason = str(error)
                        self._files.forget(name, version)
                        self._explain(name, version, "LOADING", reason)
                    refused |= {version: reason} if reason else {}
                serving_count += self._serves(name, version)
                present = present - {version}
            for version in present:
                self._unload_version(name, version, f"not served: version_policy is {policy}")
        for version in gone:
            self._forget(name, version)
        is_missed = known - versions.keys() - gone
        follows_settings = settings is not None and not isinstance(settings, str)
        is_settled = all(self._files.is_settled(name, version) for version in brought)
        if found is not None and follows_settings and is_settled and not is_missed:
            self._settled[name] = found
        return refused

    def _load_version(
        self,
        name: str,
        version: int,
        signature: Signature,
        settings: ModelSettings,
        *,
        wait_for_writes: bool,
        at_startup: bool,
    ) -> str:
        """Load and prove a version if there is something new in it; return why it is refused, "" if not."""
        started_s = time.monotonic()
        read = self._files.read(name, version, signature, settings, wait_for_writes=wait_for_writes)
        if read is None:
            reason = self._files.last_outcome(name, version)
            if reason is not None:
                self._explain(name, version, "UNAVAILABLE", reason)
            return reason or ""
        if isinstance(read, LoadFailure) and not read.is_permanent:
            self._explain(name, version, "LOADING", legible(f"incomplete: {read.error}"))
            return ""
        before = self._get(name, version)
        if isinstance(read, LoadFailure):
            loaded: ServedModel | Refusal = explain_refusal(f"{name}/{version}", read.error)
        elif before and before.model and before.model.is_made_of(read, settings):
            self._conclude(name, version, "")
            return ""
        else:
            self._explain(name, version, "LOADING", "loading")
            loaded = start_model(name, version, read, settings, self._on_lost, time_limit=self._time_limit)
        reason = loaded.reason if isinstance(loaded, Refusal) else ""
        self._on_load(LoadOutcome(name, version, time.monotonic() - started_s, reason or None))
        if not isinstance(loaded, Refusal):
            self._files.record_outcome(name, version, "")
            self._retirement.retire(self._put(Version(name, version, "READY", "", loaded)))
            return ""
        if at_startup and self._device == "cuda" and isinstance(loaded.error, DeviceError | DeviceLostError):
            raise loaded.error
        if isinstance(loaded.error, DeviceLostError):
            self._on_lost(CUDA_PROVIDER, loaded.error)
        self._conclude(name, version, reason)
        return reason

    def _refuse(self, name: str, found: FoundModel | None, reason: str) -> dict[int, str]:
        """Say of every version of a model why what is in its folder is not served."""
        versions = found.versions if found else {}
        for version in versions:
            self._explain(name, version, "UNAVAILABLE", reason)
        return dict.fromkeys(versions, reason)

    def _conclude(self, name: str, version: int, reason: str) -> None:
        self._files.record_outcome(name, version, reason)
        self._explain(name, version, "UNAVAILABLE", reason)

    def _is_gone(self, name: str, version: int, wait_for_writes: bool) -> bool:
        """Tell whether a version not in the folder is to go; one that is being moved gets a second look."""
        if not wait_for_writes or (name, version) in self._missing_once:
            return True
        self._missing_once.add((name, version))
        return False

    def _leave_alone(self, name: str, reason: str) -> list[threading.Thread]:
        """Serve nothing of a model until it is asked for; return the threads that drain what served."""
        self._unloaded.add(name)
        drains = [self._unload_version(name, version, reason) for version in self._table.get(name, {})]
        return [drain for drain in drains if drain]

    def _unload_version(self, name: str, version: int, reason: str) -> threading.Thread | None:
        """Stop serving a version that stays in the index; return the thread that drains it."""
        self._files.forget(name, version)
        if not self._serves(name, version):
            self._explain(name, version, "UNAVAILABLE", reason)
            return None
        return self._retirement.retire(self._put(Version(name, version, "UNAVAILABLE", reason)))

    def _forget(self, name: str, version: int) -> None:
        """Drop a version that is no longer in the folder, and the model with its last one."""
        self._missing_once.discard((name, version))
        self._files.forget(name, version)
        self._retirement.retire(self._remove(name, version))
        if name not in self._table:
            self._settings.forget(name)
            self._unloaded.discard(name)
        _log.info("%s/%d is gone from the repository", name, version)

    def _on_lost(self, provider: str, error: DeviceLostError) -> None:
        """Stop serving all that ran on a device that broke; called from whichever thread noticed."""
        lost = [model for model in self.ready_models() if model.verified.session.provider == provider]
        for model in lost:
            reason = f"the device was lost: {error}"
            self._settled.pop(model.name, None)  # an older version may serve in its place
            self._files.record_outcome(model.name, model.version, reason)
            entry = self._get(model.name, model.version)
            if entry is not None and entry.model is model:
                self._retirement.retire(self._put(Version(model.name, model.version, "UNAVAILABLE", reason)))
                _log.error("%s/%d: %s", model.name, model.version, reason)
