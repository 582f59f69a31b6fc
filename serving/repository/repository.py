"""Serves the models of a repository folder: loads, replaces and unloads versions as the folder changes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from foldserve.errors import ArtifactError, DeviceError, DeviceLostError
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.model.loader import LoadOutcome, loads_at_a_time
from foldserve.serving.repository.index import ModelIndex
from foldserve.serving.repository.layout import Layout
from foldserve.serving.repository.log_once import LogOnce
from foldserve.serving.repository.parallel_jobs import ParallelJobs
from foldserve.serving.repository.reconciler import Reconciler
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.runtime.time_limit import TimeLimit
    from foldserve.serving.repository.scanner import FoundModel


class ModelRepository:
    """Keeps the served models in line with ``folder``.

    Several models are loaded at the same time, each by one thread. A version that is replaced goes on serving
    until its successor has reproduced its golden pairs; it is then drained in the background.

    Attributes:
        index: all versions with their states; hand it to whatever only looks models up.
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
        """List the versions in the folder, without loading any.

        Args:
            folder: the repository.
            settings: how to run models, unless their ``model.toml`` says otherwise.
            on_load: called after each load attempt, from the thread that made it.
            settle_s: seconds that files must stay unchanged before a fault in them is reported.
            model_name: the model of which ``folder`` is the only version itself, as `Layout` says.
            time_limit: limit for reading a version, and again for verifying it; None for no limit.

        Raises:
            ArtifactError: ``folder`` is not a folder that can be read, or plainly laid out otherwise.
        """
        self.index = ModelIndex()
        self._layout = Layout(folder, model_name)
        self._layout.check()
        self._models = ParallelJobs(loads_at_a_time(settings.device), fatal=(DeviceError, DeviceLostError))
        self._reconciler = Reconciler(
            self.index, self._layout, settings, on_load, settle_s=settle_s, time_limit=time_limit
        )
        self._log_once = LogOnce()
        for name, found in self._layout.scan().items():
            for version in found.versions:
                self.index.explain(name, version, "LOADING", "loading")

    def load_all(self, only: Collection[str] | None = None) -> None:
        """Load every model, or those named in ``only``; the index has the reasons for refused versions.

        Raises:
            ArtifactError: a name in ``only`` is not in the repository, or the folder can no longer be read.
            DeviceError, DeviceLostError: the device that was asked for by name cannot run a model.
        """
        models = self._layout.scan()
        if only is not None and (unknown := sorted(set(only) - models.keys())):
            raise ArtifactError(
                f"cannot load {join_names(unknown)}: the repository has {join_names(models) or 'none'}"
            )
        for name in models:
            if only is not None and name not in only:
                with self._models.alone(name):
                    self._reconciler.unload(name, "it is loaded only on request, by RepositoryModelLoad")
        self._models.run(
            {
                name: partial(self._reconciler.reconcile, name, found, at_startup=True)
                for name, found in models.items()
            }
        )

    def refresh(self) -> None:
        """Scan the folder once, and load and unload what has changed in it.

        Returns when all changes have been applied, except slow loads: they go on in the background.
        """
        try:
            models = self._layout.scan()
        except ArtifactError as error:
            self._log_once.update("repository", f"{error}; loaded models go on being served")
            return
        self._log_once.update("repository", "")
        self._models.run(
            {
                name: partial(self._reconciler.reconcile, name, models.get(name), wait_for_writes=True)
                for name in sorted({*models, *self.index.names()})
                if self._reconciler.has_changed(name, models.get(name)) and not self._models.is_busy(name)
            },
            leave_slow=True,
        )

    def load(self, name: str) -> None:
        """Load a model: its new, changed and refused versions. Unload those that are gone from its folder.

        Raises:
            NotFoundError: the folder has no such model.
            UnavailableError: no version of the model serves, or one was refused that is as new as the one
                that answers by default, or is promoted; the message has the reasons.
        """
        self._find_folder(name)
        with self._models.alone(name):
            found = self._find_folder(name)  # again: the lock may have been held for long
            self._reconciler.forget_failures(name)
            refused = self._reconciler.reconcile(name, found)
        reasons = "; ".join(f"{version}: {reason}" for version, reason in refused.items())
        if not self.index.is_ready(name, ""):
            raise UnavailableError(f"no version of model {quote(name)} serves: {reasons}")
        serving, promoted = self.index.find(name, "").version, self.index.promoted_of(name)
        if any(version >= serving or version in promoted[:1] for version in refused):
            raise UnavailableError(f"model {quote(name)} still serves version {serving}: {reasons}")

    def unload(self, name: str) -> None:
        """Unload a model, after finishing the requests that it accepted.

        Raises:
            NotFoundError: there is no such model.
        """
        self.index.check_known(name)
        with self._models.alone(name):
            self.index.check_known(name)
            drains = self._reconciler.unload(name, "unloaded on request")
        for drain in drains:
            drain.join()

    def stop_loading(self) -> None:
        """Interrupt the loads that are running, and start no others."""
        self._reconciler.stop()

    def close(self, grace_s: float) -> None:
        """Stop loading, finish all queued requests within ``grace_s`` seconds, and stop the models."""
        self.stop_loading()
        self._reconciler.close(grace_s)

    def _find_folder(self, name: str) -> FoundModel:
        found = self._layout.scan().get(name)
        if found is None or found.fault:
            detail = (
                found.fault if found else "the repository's folder has no such model, or it has no versions"
            )
            raise NotFoundError(f"model {quote(name)} cannot be loaded: {detail}")
        return found
