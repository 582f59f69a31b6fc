"""What the server writes: lines for people, or one JSON object a line for machines.

Whoever logs puts what a machine should find under a name of its own into ``extra``; FIELDS are shown in JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from serving.shown import escaped

if TYPE_CHECKING:
    from types import TracebackType

from serving.stray_output import log_stray_output
from serving.terminal_output import ignores_lost_reader

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
    """A record as one line to read, and its traceback, if any, indented: no text in it passes for a line."""

    def __init__(self) -> None:
        super().__init__(_HUMAN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802  # logging's name
        """Return the lines of the traceback."""
        return textwrap.indent(escaped(super().formatException(ei), keep="\n"), "  ")


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time (UTC), level, logger, message, FIELDS, and a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
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
        # JSON itself escapes only what its grammar must; what is not printable stands only in its strings.
        return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)


def log_to_stderr(level: str, log_format: LogFormat) -> None:
    """Send what is logged at ``level`` or above to standard error, and what would go there unlogged."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    log_stray_output()
    logging.getLogger("PIL").setLevel(logging.INFO)  # at debug it has lines for every part of a picture
    # gRPC's core writes lines of its own; whatever matters in them reaches us as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@ignores_lost_reader
def announce(text: str, log_format: LogFormat) -> None:
    """Say on standard output, whatever the level, what whoever started the server waits for."""
    if log_format == "human":
        print(f"foldserve: {escaped(text)}", flush=True)
        return
    record = logging.LogRecord("foldserve", logging.INFO, __file__, 0, text, None, None)
    print(JsonFormatter().format(record), flush=True)
