"""The model repository: which versions there are, which proved themselves, and why the others did not."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from serving.artifact import list_versions
from serving.errors import ArtifactError, DeviceError, NotFoundError, UnavailableError
from serving.model import ModelSettings, ServedModel, open_verified
from serving.shown import listed, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Enough for any queue that is bounded to empty; what is left then is answered UNAVAILABLE.
_UNLOAD_GRACE_S = 30.0

State = Literal["LOADING", "READY", "UNAVAILABLE"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """One version of a model as it stands: serving with ``model``, or not, for ``reason``."""

    name: str
    version: int
    state: State
    reason: str = ""
    model: ServedModel | None = None


@dataclass(frozen=True)
class LoadOutcome:
    """A load attempt that has ended, after ``seconds``: ``refusal`` says why it failed, None where it did not."""

    name: str
    version: int
    seconds: float
    refusal: str | None


class Repository:
    """Every version under ``folder``.

    Reading is safe from any thread: each change replaces the whole table.
    """

    def __init__(
        self,
        folder: Path,
        settings: ModelSettings,
        on_load: Callable[[LoadOutcome], None] = lambda _: None,
    ) -> None:
        """Find the versions, none of them loaded yet.

        ``on_load`` is told of each load attempt that has ended, from the thread that loaded.

        Raises:
            ArtifactError: ``folder`` is not a folder that can be read.
        """
        self._folder = folder
        self._settings = settings
        self._on_load = on_load
        self._stopping = threading.Event()
        self._changing = threading.Lock()  # one load or unload at a time
        self._table: dict[str, dict[int, Version]] = {
            name: {version: Version(name, version, "LOADING", "loading") for version in versions}
            for name, versions in find_versions(folder).items()
        }

    def load_all(self) -> None:
        """Open and verify every version in turn; those that fail stay UNAVAILABLE with the reason.

        Raises:
            DeviceError: the device asked for by name cannot run the models; nothing can be served honestly.
        """
        for entry in self.index():
            with self._changing:
                if self._stopping.is_set():
                    return
                if self._is_waiting(entry):
                    self._put(self._load(entry))

    def load(self, name: str) -> None:
        """Look at a model's folder again: load what is new or does not serve, unload what is gone.

        Raises:
            NotFoundError: there is no such model in the folder.
            UnavailableError: none of its versions serves after it; the message says why.
            DeviceError: as `load_all`.
        """
        with self._changing:
            versions = find_versions(self._folder).get(name)
            if versions is None:
                raise NotFoundError(
                    f"model {shown(name)} is not in the repository's folder, or has no versions"
                )
            known = self._table.get(name, {})
            self._table = {
                **self._table,
                name: {
                    version: known.get(version, Version(name, version, "LOADING", "loading"))
                    for version in versions
                },
            }
            for version in known.keys() - set(versions):
                self._stop(known[version])
            for entry in self._table[name].values():
                if entry.model is None:
                    self._put(self._load(replace(entry, state="LOADING", reason="loading")))
        if not self.is_ready(name, ""):
            reasons = "; ".join(f"{entry.version}: {entry.reason}" for entry in self._table[name].values())
            raise UnavailableError(f"no version of model {shown(name)} serves: {reasons}")

    def unload(self, name: str) -> None:
        """Stop serving a model, having finished what it accepted; raises NotFoundError as `find`."""
        with self._changing:
            served = [entry for entry in self._versions(name).values() if entry.model is not None]
            for entry in served:
                self._put(replace(entry, state="UNAVAILABLE", reason="unloaded on request", model=None))
            for entry in served:
                self._stop(entry)

    def find(self, name: str, version: str) -> ServedModel:
        """Return the version asked for, the newest that serves where ``version`` is empty.

        Raises:
            NotFoundError: no such model or version.
            UnavailableError: it is loading or was refused.
        """
        if not version:
            for candidate in reversed(self._versions(name).values()):
                if candidate.model is not None:
                    return candidate.model
        entry = self._entry(name, version)
        if entry.model is None:
            raise UnavailableError(
                f"model {shown(name)} version {entry.version} does not serve: {entry.reason}"
            )
        return entry.model

    def is_ready(self, name: str, version: str) -> bool:
        """Tell whether the version (any, where it is empty) serves; raises NotFoundError as `find`."""
        try:
            self.find(name, version)
        except UnavailableError:
            return False
        return True

    def index(self) -> list[Version]:
        """Return every version, by name and number."""
        return [entry for versions in self._table.values() for entry in versions.values()]

    def ready_versions(self, name: str) -> list[str]:
        """Return the versions of a known model that serve, ascending."""
        return [str(entry.version) for entry in self._versions(name).values() if entry.model is not None]

    def ready_models(self) -> list[ServedModel]:
        """Return every version that serves."""
        return [entry.model for entry in self.index() if entry.model is not None]

    def close(self, grace_s: float) -> None:
        """Stop loading, finish what waits in all queues within ``grace_s`` seconds, stop the instances."""
        self._stopping.set()
        give_up_s = time.monotonic() + grace_s
        for model in self.ready_models():
            model.close(max(0.0, give_up_s - time.monotonic()))

    def _load(self, entry: Version) -> Version:
        started_s = time.monotonic()
        loaded = self._open(entry)
        refusal = None if loaded.model else loaded.reason
        self._on_load(LoadOutcome(entry.name, entry.version, time.monotonic() - started_s, refusal))
        return loaded

    def _open(self, entry: Version) -> Version:
        where = f"{entry.name}/{entry.version}"
        started_s = time.monotonic()
        try:
            verified = open_verified(self._folder / entry.name / str(entry.version), self._settings)
        except DeviceError:
            if self._settings.device == "cuda":
                raise
            _log.exception("%s refused", where)
            return replace(
                entry, state="UNAVAILABLE", reason="its device cannot run it; the server's log says more"
            )
        except ArtifactError as error:
            _log.error("%s refused: %s", where, error)
            return replace(entry, state="UNAVAILABLE", reason=str(error))
        except Exception as error:
            _log.exception("%s refused", where)
            return replace(
                entry, state="UNAVAILABLE", reason=f"loading failed: {type(error).__name__}: {error}"
            )
        _log.info(
            "%s ready on %s in %.2f s: %d golden pairs reproduced, largest difference %.2g, %d threads, "
            "batch invariant: %s, SHA-256 %s",
            where,
            verified.session.provider,
            time.monotonic() - started_s,
            verified.golden_count,
            verified.largest_difference,
            verified.threads,
            "yes" if verified.batch_invariant else "no",
            verified.sha256,
        )
        model = ServedModel(entry.name, entry.version, verified, self._settings)
        return replace(entry, state="READY", reason="", model=model)

    def _is_waiting(self, entry: Version) -> bool:
        """Tell whether nobody has loaded or unloaded this version since."""
        return self._table.get(entry.name, {}).get(entry.version) is entry

    @staticmethod
    def _stop(entry: Version) -> None:
        if entry.model is not None:
            entry.model.close(_UNLOAD_GRACE_S)
            _log.info("%s/%d unloaded", entry.name, entry.version)

    def _put(self, entry: Version) -> None:
        self._table = {**self._table, entry.name: {**self._table[entry.name], entry.version: entry}}

    def _versions(self, name: str) -> dict[int, Version]:
        versions = self._table.get(name)
        if versions is None:
            known = f"it has {listed(self._table)}" if self._table else "it has none"
            raise NotFoundError(f"model {shown(name)} is not in the repository; {known}")
        return versions

    def _entry(self, name: str, version: str) -> Version:
        versions = self._versions(name)
        if not version:
            return versions[max(versions)]
        for entry in versions.values():
            if str(entry.version) == version:
                return entry
        raise NotFoundError(
            f"model {shown(name)} has no version {shown(version)}; it has {', '.join(map(str, versions))}"
        )


def find_versions(folder: Path) -> dict[str, list[int]]:
    """Return the versions of each model under ``folder``, both in order; no hidden or empty ones.

    Raises:
        ArtifactError: ``folder`` is not a folder that can be read.
    """
    try:
        models = {
            entry.name: list_versions(entry)
            for entry in sorted(folder.iterdir())
            if entry.is_dir() and not entry.name.startswith(".")
        }
    except OSError as error:
        raise ArtifactError(
            f"the repository {folder} cannot be read ({error.strerror}); give --repository the folder that "
            "`foldserve export` wrote to"
        ) from error
    return {name: versions for name, versions in models.items() if versions}
