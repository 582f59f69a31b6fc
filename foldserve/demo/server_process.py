"""Runs a `foldserve serve` process for the duration of a block."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from foldserve.demo.children import ending_with_us, environment_without_settings
from foldserve.serving.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.runtime.options import Device

# Loading LeNet takes a second; a large repository or a busy machine may need a minute.
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 40.0
_POLL_S = 0.05


@contextmanager
def running_server(repository: Path, *flags: str, device: Device, log: Path) -> Iterator[str]:
    """Serve ``repository`` on a free port and yield HOST:PORT once the server is ready.

    Writes all output of the server to ``log``. The server ends with the block, and also if this process dies.

    Raises:
        UnavailableError: the server ended or was not ready within two minutes; the message quotes the last
            line of its output.
    """
    command = [sys.executable, "-m", "foldserve", "serve", "--repository", str(repository)]
    command += ["--port", "0", "--metrics-port", "0", "--device", device, *flags]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        process = subprocess.Popen(  # noqa: S603  # our own command
            ending_with_us(command),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment_without_settings(),
        )
    try:
        yield _wait_until_ready(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        # Polled before reading the log, so that the log of an ended process is complete.
        ended = process.poll() is not None
        lines = log.read_text().splitlines()
        for line in lines:
            if line.startswith("foldserve: serving on "):
                return line.removeprefix("foldserve: serving on ").split()[0]
            if line.startswith("foldserve: not ready"):
                raise UnavailableError(f"the server has no model to serve: {line} (see {log})")
        if ended:
            raise UnavailableError(
                f"the server ended with status {process.returncode}: "
                f"{lines[-1] if lines else 'no output'} (see {log})"
            )
        time.sleep(_POLL_S)
    raise UnavailableError(f"the server was not ready within {_START_LIMIT_S:.0f} s (see {log})")
