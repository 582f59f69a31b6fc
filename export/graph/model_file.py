"""Keeps the content of a large model file on disk while it is not needed in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

_LARGE_BYTES = 64 * 1024 * 1024


class ModelFile:
    """The content of a ``model.onnx``: in memory if it is small, else in a temporary file.

    The temporary file ends with this object. If it cannot be written, the content stays in memory.

    Attributes:
        size: bytes of the content.
    """

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content: bytes | None = content
        self._file: IO[bytes] | None = None
        if len(content) < _LARGE_BYTES:
            return
        try:
            self._file = tempfile.NamedTemporaryFile(prefix="foldserve-", suffix=".onnx")  # noqa: SIM115
            self._file.write(content)
            self._file.flush()
        except OSError:  # no folder for temporary files, or its disk is full
            self._file = None
        else:
            self._content = None

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
