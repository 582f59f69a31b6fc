"""Defines the errors of export. Each message is one line that can be shown to the user.

ExportError
├── SourceError     an input cannot be used: settings, weights, labels, repository
├── TraceError      the network cannot be traced or converted
├── FoldError       a batch norm depends on the other images of its batch, or is not finite
├── PrecisionError  the network cannot be converted to a lower precision
└── ParityError     the file does not compute the same as the network; nothing was published
"""

from __future__ import annotations

from foldserve.errors import FoldserveError


class ExportError(FoldserveError):
    """Base of the tree."""


class SourceError(ExportError):
    """The source cannot be exported, or the repository cannot be written."""


class TraceError(ExportError):
    """The network cannot be traced into a graph, or uses an operation that ONNX does not have."""


class FoldError(ExportError):
    """A batch norm cannot be folded: it uses the batch's statistics, or is not finite."""


class PrecisionError(ExportError):
    """The file cannot be converted to fp16 or int8; fp32 is published instead."""


class ParityError(ExportError):
    """The exported file's outputs differ from the network's by more than the tolerance."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
