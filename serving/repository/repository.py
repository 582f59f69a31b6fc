"""The model repository: brings what is served in line with what is on disk, one proven version at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from foldserve.errors import ArtifactError, DeviceError, DeviceLostError
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.model.loader import LoadOutcome, loads_at_a_time
from foldserve.serving.repository.index import ModelIndex
from foldserve.serving.repository.log_once import LogOnce
from foldserve.serving.repository.parallel_jobs import SideBySide
from foldserve.serving.repository.reconciler import Reconciler
from foldserve.serving.repository.scanner import scan
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.runtime.time_limit import TimeLimit
    from foldserve.serving.repository.scanner import FoundModel


class ModelRepository:
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
    ) -> None:
        """Find the versions, none of them loaded yet.

        ``on_load`` is told of each load attempt that has ended, from the thread that loaded. What is wrong
        with files that are still changing is not said before they have not changed for ``settle_s`` seconds.
        Reading a version and proving it are done within ``time_limit`` each, where there is one.

        Raises:
            ArtifactError: ``folder`` is not a folder that can be read.
        """
        self.index = ModelIndex()
        self._folder = folder
        self._models = SideBySide(loads_at_a_time(settings.device), fatal=(DeviceError, DeviceLostError))
        self._reconciler = Reconciler(
            self.index, folder, settings, on_load, settle_s=settle_s, time_limit=time_limit
        )
        self._log_once = LogOnce()
        for name, found in scan(folder).items():
            for version in found.versions:
                self.index.explain(name, version, "LOADING", "loading")

    def load_all(self, only: Collection[str] | None = None) -> None:
        """Open and verify every version, or those of the models in ``only``; refused ones say why.

        Raises:
            ArtifactError: there is no model of a name in ``only``, or the folder cannot be read any more.
            DeviceError, DeviceLostError: the device asked for by name does not run the models; nothing can be
                served honestly.
        """
        models = scan(self._folder)
        if only is not None and (unknown := sorted(set(only) - models.keys())):
            raise ArtifactError(
                f"cannot load {join_names(unknown)}: the repository has {join_names(models) or 'none'}"
            )
        for name in models:
            if only is not None and name not in only:
                with self._models.alone(name):
                    self._reconciler.unload(name, "it waits to be loaded by RepositoryModelLoad")
        self._models.run(
            {
                name: partial(self._reconciler.reconcile, name, found, at_startup=True)
                for name, found in models.items()
            }
        )

    def refresh(self) -> None:
        """Look at the folder once and follow what has changed in it.

        Returns once all of it has been tried but what takes long, which goes on beside.
        """
        try:
            models = scan(self._folder)
        except ArtifactError as error:
            self._log_once.set("repository", f"{error}; what is served goes on being served")
            return
        self._log_once.set("repository", "")
        self._models.run(
            {
                name: partial(self._reconciler.reconcile, name, models.get(name), wait_for_writes=True)
                for name in sorted({*models, *self.index.names()})
                if self._reconciler.has_changed(name, models.get(name)) and not self._models.is_busy(name)
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
            self._reconciler.forget_failures(name)
            refused = self._reconciler.reconcile(name, found)
        reasons = "; ".join(f"{version}: {reason}" for version, reason in refused.items())
        if not self.index.is_ready(name, ""):
            raise UnavailableError(f"no version of model {quote(name)} serves: {reasons}")
        serving = self.index.find(name, "").version
        if any(version >= serving for version in refused):
            raise UnavailableError(f"model {quote(name)} serves as before, version {serving}: {reasons}")

    def unload(self, name: str) -> None:
        """Stop serving a model, having finished what it accepted; raises NotFoundError as `find`."""
        self.index.check_known(name)
        with self._models.alone(name):
            self.index.check_known(name)
            drains = self._reconciler.unload(name, "unloaded on request")
        for drain in drains:
            drain.join()

    def stop_loading(self) -> None:
        """Stop the loads under way, and begin none any more."""
        self._reconciler.stop()

    def close(self, grace_s: float) -> None:
        """Stop loading, finish what waits in all queues within ``grace_s`` seconds, stop the instances."""
        self.stop_loading()
        self._reconciler.close(grace_s)

    def _find_folder(self, name: str) -> FoundModel:
        found = scan(self._folder).get(name)
        if found is None or found.fault:
            detail = found.fault if found else "it is not in the repository's folder, or has no versions"
            raise NotFoundError(f"model {quote(name)} cannot be loaded: {detail}")
        return found
