"""Every error that export raises on purpose; the message is one line that can be shown to the user.

ExportError
├── SourceError     what was given to export cannot be used: settings, weights, labels, repository
├── TraceError      the network cannot be traced or converted
├── FoldError       a batch norm that depends on the other images of its batch, or is not finite
├── PrecisionError  the network cannot be had in a lower precision
└── ParityError     the file does not compute what the given network computes; nothing was published
"""

from __future__ import annotations

from foldserve.errors import FoldserveError


class ExportError(FoldserveError):
    """Base of the tree."""


class SourceError(ExportError):
    """What was given cannot be exported, or the repository cannot take it."""


class TraceError(ExportError):
    """The network's computation cannot be read as a graph, or uses what ONNX does not have."""


class FoldError(ExportError):
    """A batch norm cannot be folded: it uses the batch's statistics, or is not finite."""


class PrecisionError(ExportError):
    """The file cannot be turned into half precision or int8; fp32 is published in its place."""


class ParityError(ExportError):
    """The exported file's answers differ from the given network's by more than the tolerance."""


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
