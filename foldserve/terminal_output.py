"""Makes standard output and error accept any text, and survive a reader that has gone away (`| head`)."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import select
import sys
from typing import TYPE_CHECKING, ParamSpec

from foldserve.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

    Parameters = ParamSpec("Parameters")

# The status that a shell reports for a process ended by SIGPIPE, as `head` ends most programs.
READER_GONE = 128 + 13

# Halves of surrogate pairs, as which Python reads bytes that are not UTF-8.
_NO_UTF8 = re.compile("[\ud800-\udfff]")


def takes_any_output(main: Callable[Parameters, int]) -> Callable[Parameters, int]:
    """Let ``main`` print any text; characters that the terminal's encoding lacks are escaped.

    If the reader of standard output has gone away, the function returns READER_GONE without a message.
    """

    @functools.wraps(main)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            status = main(*arguments, **options)
        except SystemExit:  # raised by `--help`
            _end_output()
            raise
        except BrokenPipeError:
            if not drop_unread_output():
                raise
            status = READER_GONE
        return _end_output() or status

    return run


def ignores_lost_reader(say: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Let ``say`` discard its output once the reader of standard output has gone away."""

    @functools.wraps(say)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        try:
            say(*arguments, **options)
        except BrokenPipeError:
            if not drop_unread_output():
                raise

    return run


def drop_unread_output() -> bool:
    """Discard further output to streams whose reader has gone away; return whether there was one."""
    unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
    for stream in unread:
        _send_nowhere(stream)
    return bool(unread)


def to_json_line(content: Mapping[str, object]) -> str:
    r"""Return ``content`` as a line of JSON; bytes that are not UTF-8 are written as "\xe9"."""
    line = json.dumps(content, ensure_ascii=False)
    return _NO_UTF8.sub(lambda found: "\\" + escape_controls(found[0]), line)


def print_utf8(line: str) -> None:
    """Print ``line`` in UTF-8 whatever the terminal's encoding, as other programs read it."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(encoding="utf-8")
    print(line)


def _end_output() -> int:
    """Flush standard output while an error can still be reported; return 0 if it works."""
    if sys.stdout is None or sys.stdout.closed:
        return 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _send_nowhere(sys.stdout)
        return READER_GONE
    except OSError as error:
        _send_nowhere(sys.stdout)
        print(f"standard output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _is_unread(stream: TextIO | None) -> bool:
    if stream is None:
        return False
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # replaced by a test, or closed
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _send_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
