"""Defines the error of images and labels that cannot be used; each message is one line for the user."""

from __future__ import annotations

from foldserve.errors import FoldserveError


class DataError(FoldserveError, ValueError):
    """The images or their labels cannot be used; the message names the file, and the line if there is one."""

    status = "INVALID_ARGUMENT"
