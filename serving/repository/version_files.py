"""Reads versions when their files change, and waits for files that are still being written.

Versions may be copied file by file, so an incomplete version may become complete. It is waited for as long as
its files go on changing, by the monotonic clock.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foldserve.artifact.format import MANIFEST_FILE, read_artifact, read_manifest
from foldserve.errors import ArtifactError, LoadsHangError, LoadTimeoutError
from foldserve.files import size_inside
from foldserve.runtime.time_limit import TimeLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foldserve.artifact.format import Artifact
    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.serving.repository.layout import Layout
    from foldserve.serving.repository.scanner import Fingerprint


@dataclass(frozen=True)
class LoadFailure:
    """Says why a version cannot be served; unless ``is_permanent``, it may still be being written."""

    error: Exception
    is_permanent: bool


@dataclass(frozen=True)
class _LastRead:
    """Records a read of files that are unchanged since ``since_s``; ``reason`` is the refusal, "" if none."""

    fingerprint: Fingerprint
    settings: ModelSettings
    since_s: float
    is_permanent: bool
    reason: str = ""

    def is_of(self, fingerprint: Fingerprint, settings: ModelSettings) -> bool:
        """Tell whether the files and the settings are the same as then."""
        return (self.fingerprint, self.settings) == (fingerprint, settings)


class VersionFiles:
    """Reads versions in the folders of a ``layout`` when their files or settings have changed.

    Incomplete files that have not changed for ``settle_s`` seconds are refused; if they change later, they
    are read again. Each model may be read by one thread at a time; `record_outcome` may be called from any.
    Reading is limited by ``time_limit``, if given. ``clock`` is in monotonic seconds.
    """

    def __init__(
        self,
        layout: Layout,
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        time_limit: TimeLimit | None = None,
    ) -> None:
        self._layout = layout
        self._settle_s = settle_s
        self._time_limit = time_limit or TimeLimit(math.inf)
        self._clock = clock
        self._last_reads: dict[tuple[str, int], _LastRead] = {}

    def is_due(
        self,
        name: str,
        version: int,
        fingerprint: Fingerprint,
        settings: ModelSettings,
        *,
        wait_for_writes: bool,
    ) -> bool:
        """Tell whether `read`, called with the same arguments, would read the files."""
        before = self._last_reads.get((name, version))
        if before is None or not before.is_of(fingerprint, settings):
            return True
        is_waiting = wait_for_writes and self._clock() - before.since_s < self._settle_s
        return not before.is_permanent and not is_waiting

    def read(
        self,
        name: str,
        version: int,
        fingerprint: Fingerprint,
        settings: ModelSettings,
        *,
        wait_for_writes: bool,
    ) -> Artifact | LoadFailure | None:
        """Return the artifact, or why it cannot be served; None if nothing has changed since the last read.

        ``fingerprint`` must have been taken before the call. Changed ``settings`` count as a change.
        Incomplete files are waited for only with ``wait_for_writes``.

        Raises:
            LoadsHangError: too many other loads hang; nothing was read.
        """
        if not self.is_due(name, version, fingerprint, settings, wait_for_writes=wait_for_writes):
            return None
        now_s = self._clock()
        before = self._last_reads.get((name, version))
        is_same = before is not None and before.is_of(fingerprint, settings)
        if is_same:  # for long enough; files changed within one clock tick are read again
            wait_for_writes = False
        folder = self._layout.version_folder(name, version)

        def read() -> Artifact:
            if wait_for_writes:
                _check_sizes(folder, self._layout.folder)
            return read_artifact(folder, self._layout.folder)

        try:
            artifact = self._read_in_time(f"{name}/{version}", read)
        except LoadsHangError:
            raise
        except Exception as error:  # whatever is wrong with the files, other versions are not affected
            since_s = before.since_s if before is not None and is_same else now_s
            self._last_reads[name, version] = _LastRead(
                fingerprint, settings, since_s, is_permanent=not wait_for_writes
            )
            return LoadFailure(error, is_permanent=not wait_for_writes)
        self._last_reads[name, version] = _LastRead(fingerprint, settings, now_s, is_permanent=True)
        return artifact

    def _read_in_time(self, what: str, read: Callable[[], Artifact]) -> Artifact:
        try:
            return self._time_limit.run(what, lambda _: read())
        except LoadTimeoutError as error:
            raise ArtifactError(str(error)) from None

    def record_outcome(self, name: str, version: int, reason: str) -> None:
        """Record why the files that were read are refused; "" if they are served."""
        last = self._last_reads.get((name, version))
        if last is not None:
            self._last_reads[name, version] = replace(last, reason=reason)

    def last_outcome(self, name: str, version: int) -> str | None:
        """Return what was recorded; None if the files are waited for or were never read."""
        last = self._last_reads.get((name, version))
        return last.reason if last is not None and last.is_permanent else None

    def forget(self, name: str, version: int) -> None:
        """Have the files read again even if they have not changed."""
        self._last_reads.pop((name, version), None)


def _check_sizes(folder: Path, within: Path) -> None:
    """Raise ArtifactError if a file's size shows that it is incomplete, without reading the file."""
    _, manifest = read_manifest(folder, within)
    for name in manifest.files:  # known names only
        expected, actual = manifest.files[name].bytes, size_inside(folder / name, within)
        if expected not in {None, actual}:
            raise ArtifactError(f"{name} has {actual} bytes; {MANIFEST_FILE} says {expected}")
