"""The model repository: brings what is served in line with what is on disk, one proven version at a time."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.errors import (
    ArtifactError,
    DeviceError,
    DeviceLostError,
    NotFoundError,
    SettingsError,
    UnavailableError,
)
from serving.layout import Layout
from serving.loading import Refusal, explain_refusal, start_model
from serving.notices import Notices
from serving.retirement import Retirement
from serving.session import CUDA_PROVIDER
from serving.settings_reader import SettingsReader
from serving.shown import listed, shown
from serving.version_files import Fault, VersionFiles
from serving.version_table import Version, VersionTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from serving.model import ModelSettings, ServedModel
    from serving.scanning import FoundModel, Signature
    from serving.version_policy import VersionPolicy

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadOutcome:
    """A load attempt that has ended after ``seconds``; ``refusal`` says why it failed, None: it did not."""

    name: str
    version: int
    seconds: float
    refusal: str | None


class Repository(VersionTable):
    """Every version under ``folder``, loaded, replaced and unloaded as the folder changes.

    One look at the folder is under way at a time. What a look replaces goes on answering until its successor
    has proven itself, and is then drained beside it.
    """

    def __init__(
        self,
        folder: Path,
        settings: ModelSettings,
        on_load: Callable[[LoadOutcome], None] = lambda _: None,
        *,
        settle_s: float = 2.0,
        model_name: str | None = None,
    ) -> None:
        """Find the versions, none of them loaded yet.

        ``on_load`` is told of each load attempt that has ended, from the thread that loaded. What is wrong
        with files that are still changing is not said before they have not changed for ``settle_s`` seconds.
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
        self._changing = threading.Lock()
        self._files = VersionFiles(self._layout, settle_s)
        self._settings = SettingsReader(folder, settings, settle_s)
        self._left_alone: set[str] = set()  # models that serve only once they are asked for by name
        self._missed: set[tuple[str, int]] = set()  # versions that were gone at the last look
        self._retirement = Retirement()
        self._notices = Notices()
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
                f"cannot load {listed(unknown)}: the repository has {listed(models) or 'none'}"
            )
        for name, found in models.items():
            with self._changing:
                if self._stopping.is_set():
                    return
                if only is not None and name not in only:
                    self._leave_alone(name, "it waits to be loaded by RepositoryModelLoad")
                elif name not in self._left_alone:
                    self._follow(name, found, is_start=True)

    def refresh(self) -> None:
        """Look at the folder once and follow what has changed in it."""
        with self._changing:
            try:
                models = self._layout.scan()
            except ArtifactError as error:
                self._notices.set("repository", f"{error}; what is served goes on being served")
                return
            self._notices.set("repository", "")
            for name in sorted({*models, *self._table}):
                if self._stopping.is_set():
                    return
                if name not in self._left_alone or name not in models:
                    self._follow(name, models.get(name), is_patient=True)

    def load(self, name: str) -> None:
        """Look at a model's folder again: load what is new, changed or was refused, unload what is gone.

        Raises:
            NotFoundError: there is no such model in the folder.
            UnavailableError: none of its versions serves after it, or a newer one is refused; says why.
        """
        with self._changing:
            found = self._layout.scan().get(name)
            if found is None or found.fault:
                detail = found.fault if found else "it is not in the repository's folder, or has no versions"
                raise NotFoundError(f"model {shown(name)} cannot be loaded: {detail}")
            self._left_alone.discard(name)
            self._settings.forget(name)
            for entry in self._table.get(name, {}).values():
                if entry.model is None or entry.reason:
                    self._files.forget(name, entry.version)
            refused = self._follow(name, found)
        reasons = "; ".join(f"{version}: {reason}" for version, reason in refused.items())
        if not self.is_ready(name, ""):
            raise UnavailableError(f"no version of model {shown(name)} serves: {reasons}")
        serving = self.find(name, "").version
        if any(version >= serving for version in refused):
            raise UnavailableError(f"model {shown(name)} serves as before, version {serving}: {reasons}")

    def unload(self, name: str) -> None:
        """Stop serving a model, having finished what it accepted; raises NotFoundError as `find`."""
        with self._changing:
            self._versions(name)
            drains = self._leave_alone(name, "unloaded on request")
        for drain in drains:
            drain.join()

    def close(self, grace_s: float) -> None:
        """Stop loading, finish what waits in all queues within ``grace_s`` seconds, stop the instances."""
        self._stopping.set()
        self._retirement.close(self.ready_models(), grace_s)

    def _follow(
        self, name: str, found: FoundModel | None, *, is_patient: bool = False, is_start: bool = False
    ) -> dict[int, str]:
        """Bring one model in line with its folder, and return which of its versions are refused, and why.

        What is new is brought up first, and what it replaces taken down after it. With ``is_patient``, what
        is not whole or has vanished is given time.
        """
        refused: dict[int, str] = {}
        versions = found.versions if found else {}
        known = self._table.get(name, {}).keys()
        self._missed -= {(name, version) for version in versions}
        gone = {version for version in known - versions.keys() if self._is_gone(name, version, is_patient)}
        if found is not None:
            settings = self._read_settings(name, found, is_patient=is_patient)
            if isinstance(settings, str):
                return dict.fromkeys(versions, settings)
            run_as, policy = settings
            present = (known | versions.keys()) - gone
            serving_count = 0
            for version in policy.candidates(present):
                if policy.is_enough(serving_count):
                    break
                if version in versions:
                    reason = self._bring_up(
                        name, version, versions[version], run_as, is_patient=is_patient, is_start=is_start
                    )
                    refused |= {version: reason} if reason else {}
                serving_count += self._serves(name, version)
                present = present - {version}
            for version in present:
                self._take_down(name, version, f"not served: version_policy is {policy}")
        for version in gone:
            self._forget(name, version)
        return refused

    def _bring_up(
        self,
        name: str,
        version: int,
        signature: Signature,
        settings: ModelSettings,
        *,
        is_patient: bool,
        is_start: bool,
    ) -> str:
        """Load and prove a version if there is something new in it; return why it is refused, "" if not."""
        started_s = time.monotonic()
        read = self._files.read(name, version, signature, settings, is_patient=is_patient)
        if read is None:
            reason = self._files.conclusion(name, version)
            if reason is not None:
                self._explain(name, version, "UNAVAILABLE", reason)
            return reason or ""
        if isinstance(read, Fault) and not read.is_final:
            self._explain(name, version, "LOADING", f"incomplete: {read.error}")
            return ""
        before = self._get(name, version)
        if isinstance(read, Fault):
            loaded: ServedModel | Refusal = explain_refusal(f"{name}/{version}", read.error)
        elif before and before.model and before.model.is_made_of(read, settings):
            self._conclude(name, version, "")
            return ""
        else:
            self._explain(name, version, "LOADING", "loading")
            loaded = start_model(name, version, read, settings, self._on_lost)
        reason = loaded.reason if isinstance(loaded, Refusal) else ""
        self._on_load(LoadOutcome(name, version, time.monotonic() - started_s, reason or None))
        if not isinstance(loaded, Refusal):
            self._files.conclude(name, version, "")
            self._retirement.retire(self._put(Version(name, version, "READY", "", loaded)))
            return ""
        if is_start and self._device == "cuda" and isinstance(loaded.error, DeviceError | DeviceLostError):
            raise loaded.error
        if isinstance(loaded.error, DeviceLostError):
            self._on_lost(CUDA_PROVIDER, loaded.error)
        self._conclude(name, version, reason)
        return reason

    def _read_settings(
        self, name: str, found: FoundModel, *, is_patient: bool
    ) -> tuple[ModelSettings, VersionPolicy] | str:
        """Return a model's settings, or why it is left as it is."""
        if found.fault:
            self._notices.set(name, found.fault)
            return found.fault
        ignored = f"ignored, since no positive integers and so no versions: {listed(found.ignored)}"
        self._notices.set(name + "/", ignored if found.ignored else "")
        settings = self._settings.read(name, found, is_patient=is_patient)
        if settings is None:
            return "its settings file is not whole"
        if isinstance(settings, SettingsError):
            self._notices.set(name, f"{settings}; what is served goes on as before")
            for version in found.versions:
                self._explain(name, version, "UNAVAILABLE", str(settings))
            return str(settings)
        self._notices.set(name, "")
        return settings

    def _conclude(self, name: str, version: int, reason: str) -> None:
        self._files.conclude(name, version, reason)
        self._explain(name, version, "UNAVAILABLE", reason)

    def _serves(self, name: str, version: int) -> bool:
        entry = self._get(name, version)
        return entry is not None and entry.model is not None

    def _is_gone(self, name: str, version: int, is_patient: bool) -> bool:
        """Tell whether a version not in the folder is to go; one that is being moved gets a second look."""
        if not is_patient or (name, version) in self._missed:
            return True
        self._missed.add((name, version))
        return False

    def _leave_alone(self, name: str, reason: str) -> list[threading.Thread]:
        """Serve nothing of a model until it is asked for; return the threads that drain what served."""
        self._left_alone.add(name)
        drains = [self._take_down(name, version, reason) for version in self._table.get(name, {})]
        return [drain for drain in drains if drain]

    def _take_down(self, name: str, version: int, reason: str) -> threading.Thread | None:
        """Stop serving a version that stays in the index; return the thread that drains it."""
        self._files.forget(name, version)
        if not self._serves(name, version):
            self._explain(name, version, "UNAVAILABLE", reason)
            return None
        return self._retirement.retire(self._put(Version(name, version, "UNAVAILABLE", reason)))

    def _forget(self, name: str, version: int) -> None:
        """Drop a version that is no longer in the folder, and the model with its last one."""
        self._missed.discard((name, version))
        self._files.forget(name, version)
        self._retirement.retire(self._remove(name, version))
        if name not in self._table:
            self._settings.forget(name)
            self._left_alone.discard(name)
        _log.info("%s/%d is gone from the repository", name, version)

    def _on_lost(self, provider: str, error: DeviceLostError) -> None:
        """Stop serving all that ran on a device that broke; called from whichever thread noticed."""
        lost = [model for model in self.ready_models() if model.verified.session.provider == provider]
        for model in lost:
            reason = f"the device was lost: {error}"
            self._files.conclude(model.name, model.version, reason)
            entry = self._get(model.name, model.version)
            if entry is not None and entry.model is model:
                self._retirement.retire(self._put(Version(model.name, model.version, "UNAVAILABLE", reason)))
                _log.error("%s/%d: %s", model.name, model.version, reason)
