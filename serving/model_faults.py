"""What is wrong with a model's folder or its settings: said once in the log, and returned as the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.errors import SettingsError
from serving.shown import legible, listed

if TYPE_CHECKING:
    from serving.notices import Notices
    from serving.scanning import FoundModel
    from serving.settings_reader import Settings, SettingsReader


def settings_or_fault(
    name: str, found: FoundModel, reader: SettingsReader, notices: Notices, *, is_patient: bool
) -> Settings | str | None:
    """Return how a model is run, or why none of what is in its folder is served.

    None: its settings are wrong, but with ``is_patient`` that is not said before they have settled.
    """
    if found.fault:
        notices.set(name, found.fault)
        return found.fault
    ignored = f"ignored, since no positive integers and so no versions: {listed(found.ignored)}"
    notices.set(name + "/", ignored if found.ignored else "")
    settings = reader.read(name, found, is_patient=is_patient)
    if isinstance(settings, SettingsError):
        reason = legible(str(settings))
        notices.set(name, f"{reason}; what is served goes on as before")
        return reason
    if settings is not None:
        notices.set(name, "")
    return settings
