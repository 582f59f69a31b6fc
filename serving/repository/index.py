"""Indexes all versions of all models: their states, the models that serve, and why the others do not."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from foldserve.serving.model.served_model import ServedModel

State = Literal["LOADING", "READY", "UNAVAILABLE"]


@dataclass(frozen=True)
class VersionEntry:
    """Describes one version of a model; ``model`` is None if it does not serve.

    ``reason`` says why it does not serve or, if it does, why newer files on disk are not served instead.
    """

    name: str
    version: int
    state: State
    reason: str = ""
    model: ServedModel | None = None


@dataclass(frozen=True)
class _Versions:
    """All versions of one model by number, ascending; ``default`` answers requests that name none."""

    entries: Mapping[int, VersionEntry] = field(default_factory=dict)
    promoted: tuple[int, ...] = ()
    default: int | None = None

    def with_entries(self, entries: Mapping[int, VersionEntry]) -> _Versions:
        return _Versions(
            dict(sorted(entries.items())), self.promoted, _default(entries, self.promoted, self.default)
        )

    def with_promoted(self, promoted: tuple[int, ...]) -> _Versions:
        return _Versions(self.entries, promoted, _default(self.entries, promoted, self.default))


def _default(
    entries: Mapping[int, VersionEntry], promoted: tuple[int, ...], before: int | None
) -> int | None:
    """Return the version that answers requests that name none: the promoted one, or else the newest.

    As long as the promoted version does not serve, the one that answered ``before`` goes on, so that a
    promotion which fails its proof takes nothing away.
    """
    serving = [version for version, entry in entries.items() if entry.model is not None]
    preferred = (*promoted[:1], before, *promoted[1:]) if promoted else ()
    return next((version for version in preferred if version in serving), max(serving, default=None))


class ModelIndex:
    """Finds versions by name and number.

    Reading is safe from any thread and takes no lock: each change replaces the whole table.
    """

    def __init__(self) -> None:
        self._table: dict[str, _Versions] = {}
        self._replacing = threading.Lock()
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` after each change, from the thread that made it."""
        self._subscribers.append(on_change)

    def find(self, name: str, version: str) -> ServedModel:
        """Return a model's ``version``; if it is empty, the promoted version or else the newest that serves.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: it is loading, was refused or is unloaded.
        """
        if not version:
            versions = self._versions(name)
            default = versions.entries[versions.default].model if versions.default is not None else None
            if default is not None:
                return default
        entry = self._entry(name, version)
        if entry.model is None:
            raise UnavailableError(
                f"model {quote(name)} version {entry.version} does not serve: {entry.reason}"
            )
        return entry.model

    def is_ready(self, name: str, version: str) -> bool:
        """Tell whether a version serves, or any version if ``version`` is empty.

        Raises:
            NotFoundError: there is no such model or version.
        """
        try:
            self.find(name, version)
        except UnavailableError:
            return False
        return True

    def entries(self) -> list[VersionEntry]:
        """Return all versions, sorted by name and number."""
        table = self._table
        return [entry for name in sorted(table) for entry in table[name].entries.values()]

    def versions_of(self, name: str) -> Mapping[int, VersionEntry]:
        """Return a model's versions by number, ascending; none if the model is not known."""
        versions = self._table.get(name)
        return {} if versions is None else versions.entries

    def default_of(self, name: str) -> int | None:
        """Return the version that answers requests that name none; None if none serves."""
        versions = self._table.get(name)
        return None if versions is None else versions.default

    def promoted_of(self, name: str) -> tuple[int, ...]:
        """Return the versions of a model that were promoted, the one in force first."""
        versions = self._table.get(name)
        return () if versions is None else versions.promoted

    def promote(self, name: str, promoted: tuple[int, ...]) -> None:
        """Set which versions were promoted, the one in force first; it answers by default once it serves."""
        if promoted == self.promoted_of(name):
            return
        with self._replacing:
            before = self._table.get(name, _Versions())
            table = self._table | {name: before.with_promoted(promoted)}
            if not (promoted or before.entries):
                del table[name]
            self._table = table
        self._tell()

    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        return sorted(self._table)

    def ready_versions(self, name: str) -> list[str]:
        """Return the versions of a model that serve, ascending.

        Raises:
            NotFoundError: there is no such model.
        """
        return [
            str(entry.version) for entry in self._versions(name).entries.values() if entry.model is not None
        ]

    def ready_models(self) -> list[ServedModel]:
        """Return the models of all versions that serve."""
        return [entry.model for entry in self.entries() if entry.model is not None]

    def put(self, entry: VersionEntry) -> ServedModel | None:
        """Set a version; return the model that served as this version before, if it was another."""
        with self._replacing:
            before = self._replace(entry)
        self._tell()
        return before.model if before is not None and before.model is not entry.model else None

    def explain(self, name: str, version: int, state: State, reason: str) -> None:
        """Set a version's state and reason. A version that is serving stays READY."""
        with self._replacing:
            before = self.get(name, version) or VersionEntry(name, version, "LOADING")
            after = replace(before, state="READY" if before.model else state, reason=reason)
            if after == self.get(name, version):
                return
            self._replace(after)
        self._tell()

    def remove(self, name: str, version: int) -> ServedModel | None:
        """Remove a version, and its model with the last one; return the model that served."""
        with self._replacing:
            there = self._table.get(name, _Versions())
            entries = dict(there.entries)
            before = entries.pop(version, None)
            table = self._table | {name: there.with_entries(entries)}
            if not entries:
                del table[name]
            self._table = table
        self._tell()
        return before.model if before else None

    def get(self, name: str, version: int) -> VersionEntry | None:
        """Return a version, or None if it is not known."""
        return self.versions_of(name).get(version)

    def is_serving(self, name: str, version: int) -> bool:
        """Tell whether a version answers requests; one that is not known does not."""
        entry = self.get(name, version)
        return entry is not None and entry.model is not None

    def _replace(self, entry: VersionEntry) -> VersionEntry | None:
        before = self.get(entry.name, entry.version)
        versions = self._table.get(entry.name, _Versions())
        entries = {**versions.entries, entry.version: entry}
        self._table = self._table | {entry.name: versions.with_entries(entries)}
        return before

    def _tell(self) -> None:
        for on_change in self._subscribers:
            on_change()

    def check_known(self, name: str) -> None:
        """Raise NotFoundError, which lists the known models, if a model is not known."""
        self._versions(name)

    def _versions(self, name: str) -> _Versions:
        versions = self._table.get(name)
        if versions is None or not versions.entries:
            known = f"it has {join_names(self._table)}" if self._table else "it is empty"
            raise NotFoundError(f"model {quote(name)} is not in the repository; {known}")
        return versions

    def _entry(self, name: str, version: str) -> VersionEntry:
        there = self._versions(name)
        promoted, versions = there.promoted, there.entries
        if not version:
            return versions[next((each for each in promoted if each in versions), max(versions))]
        for entry in versions.values():
            if str(entry.version) == version:
                return entry
        raise NotFoundError(
            f"model {quote(name)} has no version {quote(version)}; it has {', '.join(map(str, versions))}"
        )
