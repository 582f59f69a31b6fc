"""Re-reads ``model.toml`` and ``promoted.json`` of each model when they change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from foldserve.artifact.promotion import PROMOTED_FILE, by_preference, read_promotions
from foldserve.errors import ArtifactError
from foldserve.serving.errors import SettingsError
from foldserve.serving.repository.model_file import SETTINGS_FILE, read_model_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.serving.repository.scanner import Fingerprint, FoundModel
    from foldserve.serving.repository.version_policy import VersionPolicy

# How to run a model, which of its versions to serve, and those that were promoted, the one in force first.
Settings: TypeAlias = "tuple[ModelSettings, VersionPolicy, tuple[int, ...]]"


@dataclass(frozen=True)
class _LastRead:
    fingerprints: tuple[Fingerprint, object]
    since_s: float
    outcome: Settings | SettingsError


class ModelFileCache:
    """Reads ``model.toml`` and ``promoted.json`` of models in the repository ``folder``.

    ``defaults`` are the server's flags.
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
        self._last_reads: dict[str, _LastRead] = {}

    def read(self, name: str, found: FoundModel, *, wait_for_writes: bool) -> Settings | SettingsError | None:
        """Return a model's settings, or the error in its file.

        Returns None if the file is invalid but, with ``wait_for_writes``, may still be being written.
        """
        last = self._last_reads.get(name)
        fingerprints = (found.settings, found.promoted)
        if last is None or last.fingerprints != fingerprints:
            last = _LastRead(fingerprints, self._clock(), self._read(found))
            self._last_reads[name] = last
        if (
            isinstance(last.outcome, SettingsError)
            and wait_for_writes
            and self._clock() - last.since_s < self._settle_s
        ):
            return None
        return last.outcome

    def forget(self, name: str) -> None:
        """Have a model's files read again even if they have not changed."""
        self._last_reads.pop(name, None)

    def _read(self, found: FoundModel) -> Settings | SettingsError:
        reading = SETTINGS_FILE
        try:
            settings, policy = read_model_settings(found.folder, self._defaults, self._folder)
            reading = PROMOTED_FILE
            promotions = read_promotions(found.folder, self._folder) if found.promoted else ()
        except SettingsError as error:
            return error
        except ArtifactError as error:
            return SettingsError(str(error))
        except Exception as error:  # a strange file must affect this model alone
            return SettingsError(f"{reading} cannot be used: {type(error).__name__}: {error}")
        return settings, policy, by_preference(promotions)
