"""Defines the errors of data and outputs; each message is one line for the user."""

from __future__ import annotations

from foldserve.errors import FoldserveError


class DataError(FoldserveError, ValueError):
    """The images or their labels cannot be used; the message names the file, and the line if there is one."""

    status = "INVALID_ARGUMENT"


class OutputError(FoldserveError):
    """The output exists already, or cannot be written or continued."""

    status = "FAILED_PRECONDITION"
