"""A version's files over time: are they whole, and have they changed since the last look?

People copy versions file by file, so what is not whole may become so. Waiting for it goes by what the file
system says of the files, and by the monotonic clock: a version waits as long as its files go on changing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from serving.artifact import MANIFEST_FILE, read_artifact, read_manifest
from serving.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving.artifact import Artifact
    from serving.layout import Layout
    from serving.model import ModelSettings
    from serving.scanning import Signature


@dataclass(frozen=True)
class Fault:
    """Why a version's files cannot be served; one that is not ``is_final`` may still be on their way."""

    error: ArtifactError
    is_final: bool


@dataclass(frozen=True)
class _Look:
    """What was seen at ``since_s``, and not changed later; ``reason`` is what became of it."""

    signature: Signature
    settings: ModelSettings
    since_s: float
    is_final: bool
    reason: str = ""


class VersionFiles:
    """Reads versions in the folders of a ``layout`` when there is something new in them.

    What is not whole and has not changed for ``settle_s`` seconds is refused. If it changes after all it is
    read again, so that this only decides what is said of it meanwhile. Not for several threads at once, but
    for `conclude`. ``clock`` is in monotonic seconds.
    """

    def __init__(self, layout: Layout, settle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout = layout
        self._settle_s = settle_s
        self._clock = clock
        self._looks: dict[tuple[str, int], _Look] = {}

    def read(
        self, name: str, version: int, signature: Signature, settings: ModelSettings, *, is_patient: bool
    ) -> Artifact | Fault | None:
        """Return the whole artifact, or why there is none; None where nothing is new since the last time.

        ``signature`` is that of the files, taken before this. Other ``settings``, how it would be run, are
        something new too. Only with ``is_patient`` are files that are not whole waited for.
        """
        now_s = self._clock()
        before = self._looks.get((name, version))
        is_same = before is not None and (before.signature, before.settings) == (signature, settings)
        if before is not None and is_same:
            if before.is_final or (is_patient and now_s - before.since_s < self._settle_s):
                return None
            is_patient = False  # long enough; files that changed within one tick of the clock are read again
        folder = self._layout.version_folder(name, version)
        try:
            if is_patient:
                _check_sizes(folder, self._layout.folder)
            artifact = read_artifact(folder, self._layout.folder)
        except ArtifactError as error:
            since_s = before.since_s if before is not None and is_same else now_s
            self._looks[name, version] = _Look(signature, settings, since_s, is_final=not is_patient)
            return Fault(error, is_final=not is_patient)
        self._looks[name, version] = _Look(signature, settings, now_s, is_final=True)
        return artifact

    def conclude(self, name: str, version: int, reason: str) -> None:
        """Note what became of the files that were read; "" is that they are served."""
        look = self._looks.get((name, version))
        if look is not None:
            self._looks[name, version] = replace(look, reason=reason)

    def conclusion(self, name: str, version: int) -> str | None:
        """Return what was noted; None where the files are waited for or were never read."""
        look = self._looks.get((name, version))
        return look.reason if look is not None and look.is_final else None

    def forget(self, name: str, version: int) -> None:
        """Read the files the next time whatever they are like."""
        self._looks.pop((name, version), None)


def _check_sizes(folder: Path, within: Path) -> None:
    """Raise ArtifactError where sizes alone show that files are not whole: a large one is then not read."""
    for name, facts in read_manifest(folder, within)["files"].items():
        path = folder / str(name)
        expected = facts.get("bytes") if isinstance(facts, dict) else None
        if isinstance(expected, int) and path.is_file() and path.stat().st_size != expected:
            raise ArtifactError(f"{name} has {path.stat().st_size} bytes, {MANIFEST_FILE} says {expected}")
