"""Defines the error of outputs; each message is one line for the user."""

from __future__ import annotations

from foldserve.errors import FoldserveError


class OutputError(FoldserveError):
    """The output exists already, or cannot be written or continued."""

    status = "FAILED_PRECONDITION"
