"""Defines the errors of the page; the message of each is shown on it."""

from __future__ import annotations

from foldserve.errors import FoldserveError


class UiError(FoldserveError):
    """The page cannot do what was asked; the message says why and what to do."""
