"""What is wrong with a model's folder or its settings: said once in the log, and returned as the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.serving.errors import SettingsError
from foldserve.text import join_names, legible

if TYPE_CHECKING:
    from foldserve.serving.repository.log_once import LogOnce
    from foldserve.serving.repository.model_file_cache import Settings, SettingsReader
    from foldserve.serving.repository.scanner import FoundModel


def settings_or_fault(
    name: str, found: FoundModel, reader: SettingsReader, notices: LogOnce, *, wait_for_writes: bool
) -> Settings | str | None:
    """Return how a model is run, or why none of what is in its folder is served.

    None: its settings are wrong, but with ``wait_for_writes`` that is not said before they have settled.
    """
    if found.fault:
        notices.set(name, found.fault)
        return found.fault
    ignored = f"ignored, since no positive integers and so no versions: {join_names(found.ignored)}"
    notices.set(name + "/", ignored if found.ignored else "")
    settings = reader.read(name, found, wait_for_writes=wait_for_writes)
    if isinstance(settings, SettingsError):
        reason = legible(str(settings))
        notices.set(name, f"{reason}; what is served goes on as before")
        return reason
    if settings is not None:
        notices.set(name, "")
    return settings
