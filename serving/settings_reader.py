"""Models' settings files over time: read when they change, and what held before holds while one is wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from serving.errors import SettingsError
from serving.model_settings import SETTINGS_FILE, read_model_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving.model import ModelSettings
    from serving.scanning import FoundModel, Signature
    from serving.version_policy import VersionPolicy

Settings: TypeAlias = "tuple[ModelSettings, VersionPolicy]"


@dataclass(frozen=True)
class _Look:
    signature: Signature
    since_s: float
    outcome: Settings | SettingsError


class SettingsReader:
    """Reads ``model.toml`` of models in the repository ``folder``; ``defaults`` are the server's flags.

    A file that is wrong may be half written until it has not changed for ``settle_s`` seconds. Not for
    several threads at once. ``clock`` is in monotonic seconds.
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
        self._looks: dict[str, _Look] = {}

    def read(self, name: str, found: FoundModel, *, is_patient: bool) -> Settings | SettingsError | None:
        """Return a model's settings, or what is wrong with them.

        None: they are wrong, but with ``is_patient`` that is not said before they have settled.
        """
        look = self._looks.get(name)
        if look is None or look.signature != found.settings:
            look = _Look(found.settings, self._clock(), self._read(found))
            self._looks[name] = look
        if (
            isinstance(look.outcome, SettingsError)
            and is_patient
            and self._clock() - look.since_s < self._settle_s
        ):
            return None
        return look.outcome

    def forget(self, name: str) -> None:
        """Read a model's file the next time whatever it is like."""
        self._looks.pop(name, None)

    def _read(self, found: FoundModel) -> Settings | SettingsError:
        try:
            return read_model_settings(found.folder, self._defaults, self._folder)
        except SettingsError as error:
            return error
        except Exception as error:  # whatever the file is like, it is this model's fault alone
            return SettingsError(f"{SETTINGS_FILE} cannot be used: {type(error).__name__}: {error}")
