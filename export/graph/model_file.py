"""Keeps the content of a large model file on disk while it is not needed in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGE_BYTES = 64 * 1024 * 1024


class ModelFile:
    """The content of a ``model.onnx``: in memory if it is small, else in a temporary file.

    The temporary file ends with this object. If it cannot be written, the content stays in memory.

    Attributes:
        size: bytes of the content.
    """

    def __init__(self, content: bytes | Sequence[bytes | memoryview], large_bytes: int | None = None) -> None:
        """Hold ``content``, which may come in parts; on disk from ``large_bytes`` on, 64 MiB by default."""
        parts = [content] if isinstance(content, bytes) else content
        self.size = sum(map(len, parts))
        self._content: bytes | None = None
        self._file: IO[bytes] | None = None
        if self.size >= (LARGE_BYTES if large_bytes is None else large_bytes):
            try:
                self._file = tempfile.NamedTemporaryFile(prefix="foldserve-", suffix=".onnx")  # noqa: SIM115
                self._file.writelines(parts)
                self._file.flush()
            except OSError:  # no folder for temporary files, or its disk is full
                self._file = None
        if self._file is None:
            self._content = content if isinstance(content, bytes) else b"".join(parts)

    @property
    def content(self) -> bytes:
        """The content, read anew from the temporary file if there is one."""
        if self._content is not None:
            return self._content
        return Path(self._name).read_bytes()

    @property
    def loadable(self) -> bytes | Path:
        """What `foldserve.runtime.session.Session` opens with the least memory: the file, or the content."""
        return self._content if self._content is not None else Path(self._name)

    @property
    def _name(self) -> str:
        assert self._file is not None
        return self._file.name
