"""Checks a model's folder and settings before its versions are loaded; logs each fault once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.serving.errors import SettingsError
from foldserve.text import join_names, legible

if TYPE_CHECKING:
    from foldserve.serving.repository.log_once import LogOnce
    from foldserve.serving.repository.model_file_cache import ModelFileCache, Settings
    from foldserve.serving.repository.scanner import FoundModel


def settings_or_fault(
    name: str, found: FoundModel, reader: ModelFileCache, log_once: LogOnce, *, wait_for_writes: bool
) -> Settings | str | None:
    """Return a model's settings, or the reason why nothing in its folder may be loaded.

    Returns None if the settings are invalid but may still be being written (only with ``wait_for_writes``).
    """
    if found.fault:
        log_once.update(name, found.fault)
        return found.fault
    ignored = f"ignored folders whose names are not positive integers: {join_names(found.ignored)}"
    log_once.update(name + "/", ignored if found.ignored else "")
    settings = reader.read(name, found, wait_for_writes=wait_for_writes)
    if isinstance(settings, SettingsError):
        reason = legible(str(settings))
        log_once.update(name, f"{reason}; loaded versions go on being served")
        return reason
    if settings is not None:
        log_once.update(name, "")
    return settings
