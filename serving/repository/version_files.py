"""A version's files over time: are they whole, and have they changed since the last look?

People copy versions file by file, so what is not whole may become so. Waiting for it goes by what the file
system says of the files, and by the monotonic clock: a version waits as long as its files go on changing.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foldserve.artifact.format import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, read_artifact, read_manifest
from foldserve.errors import ArtifactError, LoadsHangError, LoadTimeoutError
from foldserve.files import size_inside
from foldserve.runtime.time_limit import TimeLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foldserve.artifact.format import Artifact
    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.serving.repository.scanner import Signature


@dataclass(frozen=True)
class LoadFailure:
    """Why a version's files cannot be served; one that is not ``is_permanent`` may still be on their way."""

    error: Exception
    is_permanent: bool


@dataclass(frozen=True)
class _Look:
    """What was seen at ``since_s``, and not changed later; ``reason`` is what became of it."""

    signature: Signature
    settings: ModelSettings
    since_s: float
    is_permanent: bool
    reason: str = ""

    def is_of(self, signature: Signature, settings: ModelSettings) -> bool:
        """Tell whether the files and the settings are those of this look."""
        return (self.signature, self.settings) == (signature, settings)


class VersionFiles:
    """Reads versions of the repository ``folder`` when there is something new in them.

    What is not whole and has not changed for ``settle_s`` seconds is refused. If it changes after all it is
    read again, so that this only decides what is said of it meanwhile. For one thread a model at a time, and
    `record_outcome` for any. Reading ends within ``time_limit``, if any. ``clock`` is in monotonic
    seconds.
    """

    def __init__(
        self,
        folder: Path,
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        time_limit: TimeLimit | None = None,
    ) -> None:
        self._folder = folder
        self._settle_s = settle_s
        self._time_limit = time_limit or TimeLimit(math.inf)
        self._clock = clock
        self._looks: dict[tuple[str, int], _Look] = {}

    def is_due(
        self, name: str, version: int, signature: Signature, settings: ModelSettings, *, wait_for_writes: bool
    ) -> bool:
        """Tell whether `read`, called with the same arguments, would read the files."""
        before = self._looks.get((name, version))
        if before is None or not before.is_of(signature, settings):
            return True
        is_waiting = wait_for_writes and self._clock() - before.since_s < self._settle_s
        return not before.is_permanent and not is_waiting

    def read(
        self, name: str, version: int, signature: Signature, settings: ModelSettings, *, wait_for_writes: bool
    ) -> Artifact | LoadFailure | None:
        """Return the whole artifact, or why there is none; None where nothing is new since the last time.

        ``signature`` is that of the files, taken before this. Other ``settings``, how it would be run, are
        something new too. Only with ``wait_for_writes`` are files that are not whole waited for.

        Raises:
            LoadsHangError: too many other loads do not end; nothing was read.
        """
        if not self.is_due(name, version, signature, settings, wait_for_writes=wait_for_writes):
            return None
        now_s = self._clock()
        before = self._looks.get((name, version))
        is_same = before is not None and before.is_of(signature, settings)
        if is_same:  # long enough; files that changed within one tick of the clock are read again
            wait_for_writes = False
        folder = self._folder / name / str(version)

        def read() -> Artifact:
            if wait_for_writes:
                _check_sizes(folder, self._folder)
            return read_artifact(folder, self._folder)

        try:
            artifact = self._read_in_time(f"{name}/{version}", read)
        except LoadsHangError:
            raise
        except Exception as error:  # whatever strangers' files are like, it is this version's fault alone
            since_s = before.since_s if before is not None and is_same else now_s
            self._looks[name, version] = _Look(signature, settings, since_s, is_permanent=not wait_for_writes)
            return LoadFailure(error, is_permanent=not wait_for_writes)
        self._looks[name, version] = _Look(signature, settings, now_s, is_permanent=True)
        return artifact

    def _read_in_time(self, what: str, read: Callable[[], Artifact]) -> Artifact:
        try:
            return self._time_limit.run(what, lambda _: read())
        except LoadTimeoutError as error:
            raise ArtifactError(str(error)) from None

    def is_settled(self, name: str, version: int) -> bool:
        """Tell whether the files were read as they are, and nothing of them is waited for."""
        look = self._looks.get((name, version))
        return look is not None and look.is_permanent

    def record_outcome(self, name: str, version: int, reason: str) -> None:
        """Note what became of the files that were read; "" is that they are served."""
        look = self._looks.get((name, version))
        if look is not None:
            self._looks[name, version] = replace(look, reason=reason)

    def last_outcome(self, name: str, version: int) -> str | None:
        """Return what was noted; None where the files are waited for or were never read."""
        look = self._looks.get((name, version))
        return look.reason if look is not None and look.is_permanent else None

    def forget(self, name: str, version: int) -> None:
        """Read the files the next time whatever they are like."""
        self._looks.pop((name, version), None)


def _check_sizes(folder: Path, within: Path) -> None:
    """Raise ArtifactError where sizes alone show that files are not whole: a large one is then not read."""
    _, manifest = read_manifest(folder, within)
    for name in (MODEL_FILE, GOLDEN_FILE):
        expected, actual = manifest.files[name].bytes, size_inside(folder / name, within)
        if expected not in {None, actual}:
            raise ArtifactError(f"{name} has {actual} bytes, {MANIFEST_FILE} says {expected}")
