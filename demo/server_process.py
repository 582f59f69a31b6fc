"""A real `foldserve serve` process for the length of a block."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from demo.children import ending_with_us, environment_without_settings
from serving.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving.config import Device

# Loading LeNet takes a second; a machine that is busy or a large repository may take a minute.
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 40.0
_POLL_S = 0.05


@contextmanager
def running_server(repository: Path, *, device: Device, log: Path) -> Iterator[str]:
    """Serve ``repository`` on a port of the operating system's choice; yield HOST:PORT once something serves.

    Everything the server prints goes to ``log``. It ends with the block, and with this process.

    Raises:
        UnavailableError: it ended or nothing served within two minutes; the message quotes its last line.
    """
    command = [sys.executable, "-m", "foldserve", "serve", "--repository", str(repository)]
    command += ["--port", "0", "--metrics-port", "0", "--device", device]
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
        # Asked before the log is read: what an ended process wrote is then all there.
        ended = process.poll() is not None
        lines = log.read_text().splitlines()
        for line in lines:
            if line.startswith("foldserve: serving on "):
                return line.removeprefix("foldserve: serving on ").split()[0]
            if line.startswith("foldserve: not ready"):
                raise UnavailableError(f"the server has nothing to serve: {line} (see {log})")
        if ended:
            raise UnavailableError(
                f"the server ended with status {process.returncode}: "
                f"{lines[-1] if lines else 'no output'} (see {log})"
            )
        time.sleep(_POLL_S)
    raise UnavailableError(f"the server was not ready within {_START_LIMIT_S:.0f} s (see {log})")
