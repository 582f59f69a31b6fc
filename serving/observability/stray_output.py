"""Sends to the log what libraries and the interpreter would print to standard error.

A JSON log must not contain other lines, and Python's own form of a warning shows paths of this machine.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from types import TracebackType

_log = logging.getLogger(__name__)


def log_stray_output() -> None:
    """Log warnings and uncaught exceptions from now on."""
    warnings.showwarning = _log_warning
    threading.excepthook = _log_end_of_thread
    sys.unraisablehook = _log_unraisable
    sys.excepthook = _log_end_of_process


def _log_warning(  # noqa: PLR0917  # as Python calls it
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    _log.warning("%s: %s", category.__name__, message)


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is SystemExit:
        return
    name = ended.thread.name if ended.thread else "?"
    _log.error("thread %s ended by an exception", name, exc_info=ended.exc_value)


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    what = unraisable.err_msg or "exception ignored"
    _log.error("%s", what, exc_info=unraisable.exc_value)


def _log_end_of_process(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    _log.critical("ended by an exception", exc_info=(kind, error, traceback))
