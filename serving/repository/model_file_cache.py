"""Re-reads ``model.toml`` of each model when it changes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from foldserve.serving.errors import SettingsError
from foldserve.serving.repository.model_file import SETTINGS_FILE, read_model_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.serving.repository.scanner import Fingerprint, FoundModel
    from foldserve.serving.repository.version_policy import VersionPolicy

Settings: TypeAlias = "tuple[ModelSettings, VersionPolicy]"


@dataclass(frozen=True)
class _Entry:
    signature: Fingerprint
    since_s: float
    outcome: Settings | SettingsError


class SettingsReader:
    """Caches the settings of the models in the repository ``folder``; ``defaults`` are the server's flags.

    An invalid file may be half written until it has not changed for ``settle_s`` seconds. Not thread-safe.
    ``clock`` returns monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        defaults: ModelSettings,
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._defaults = defaults
        self._settle_s = settle_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def read(self, name: str, found: FoundModel, *, wait_for_writes: bool) -> Settings | SettingsError | None:
        """Return a model's settings, or the error in its file.

        Returns None if the file is invalid but, with ``wait_for_writes``, may still be being written.
        """
        entry = self._entries.get(name)
        if entry is None or entry.signature != found.settings:
            entry = _Entry(found.settings, self._clock(), self._read(found))
            self._entries[name] = entry
        if (
            isinstance(entry.outcome, SettingsError)
            and wait_for_writes
            and self._clock() - entry.since_s < self._settle_s
        ):
            return None
        return entry.outcome

    def forget(self, name: str) -> None:
        """Read a model's file again the next time, even if it has not changed."""
        self._entries.pop(name, None)

    def _read(self, found: FoundModel) -> Settings | SettingsError:
        try:
            return read_model_settings(found.folder, self._defaults, self._folder)
        except SettingsError as error:
            return error
        except Exception as error:  # a strange file must affect this model alone
            return SettingsError(f"{SETTINGS_FILE} cannot be used: {type(error).__name__}: {error}")
