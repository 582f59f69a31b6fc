"""Formats the log: lines for people, or one JSON object per line for machines.

Code that logs passes values that machines should find in ``extra``; those named in FIELDS appear in the JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from foldserve.text import escaped

if TYPE_CHECKING:
    from types import TracebackType

from foldserve.serving.observability.stray_output import log_stray_output
from foldserve.terminal_output import ignores_lost_reader

LogFormat = Literal["human", "json"]

# Names in ``extra`` that become keys of the JSON object; times are in seconds.
FIELDS = (
    *("model", "version", "method", "code", "request_id", "peer", "rows"),
    *("queue_s", "compute_s", "total_s"),
)

_HUMAN = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_ExceptionInfo: TypeAlias = (
    "tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]"
)


class LineFormatter(logging.Formatter):
    """Formats a record as one line, with an indented traceback if any; no text can forge a line."""

    def __init__(self) -> None:
        super().__init__(_HUMAN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802  # logging's name
        """Return the indented traceback."""
        return textwrap.indent(escaped(super().formatException(ei), keep="\n"), "  ")


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time (UTC), level, logger, message, FIELDS, traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a newline."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        content |= {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        line = json.dumps(content, ensure_ascii=False, default=str)
        # json.dumps escapes only what JSON requires; unprintable characters can occur in its strings only.
        return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)


def log_to_stderr(level: str, log_format: LogFormat) -> None:
    """Log records of ``level`` and above to standard error, and what libraries would print there."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    log_stray_output()
    logging.getLogger("PIL").setLevel(logging.INFO)  # at debug it logs every part of a picture
    # gRPC's core prints lines of its own; those that matter also reach us as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@ignores_lost_reader
def announce(text: str, log_format: LogFormat) -> None:
    """Print to standard output, at any log level, what those who start the server wait for."""
    if log_format == "human":
        print(f"foldserve: {escaped(text)}", flush=True)
        return
    record = logging.LogRecord("foldserve", logging.INFO, __file__, 0, text, None, None)
    print(JsonFormatter().format(record), flush=True)
