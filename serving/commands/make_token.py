"""Carries out `foldserve token`: makes a bearer token, and the line with its hash for the server."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from foldserve.serving.security.tokens import Caller, create_token, to_line

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.serving.commands.command_configs import TokenConfig


def make_token(config: TokenConfig) -> int:
    """Print a token to standard output; add its line to the given file, or print the line. Return 0.

    Raises:
        OSError: the file cannot be written.
    """
    token = create_token()
    line = to_line(Caller(config.name, config.role), token)
    if config.tokens is None:
        print(f"add this line to the file that `foldserve serve --tokens` reads:\n{line}", file=sys.stderr)
        print("the token itself, which is not shown again:", file=sys.stderr)
    else:
        _append(config.tokens, line)
        print(f"added {config.name} ({config.role}) to {config.tokens}; the token:", file=sys.stderr)
    print(token)
    return 0


def _append(path: Path, line: str) -> None:
    """Append a line in one write, so that a server that reads meanwhile sees all of it or nothing."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "rb+", buffering=0) as file:
        content = file.read()
        start = "\n" if content and not content.endswith(b"\n") else ""
        try:
            file.write(f"{start}{line}\n".encode())
            os.fsync(descriptor)
        except OSError as error:  # perhaps a part was written
            file.truncate(len(content))
            if is_new:  # without a line it would let nobody in
                path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error
