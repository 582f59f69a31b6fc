"""Runs any of the compared servers for the duration of a block, and measures its CPU time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.serving.contestants import launch
from benchmarks.serving.errors import BenchError
from foldserve.demo.children import ending_with_us, environment_without_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.serving.contestants import Contestant
    from benchmarks.serving.networks import Network

# AlexNet's 244 MB are hashed and its golden pairs replayed before foldserve listens for real.
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 20.0


@dataclass(frozen=True)
class ServerProcess:
    """A started server; it and its children form a process session, which ends with this process."""

    contestant: Contestant
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def processor_s(self) -> float:
        """Return the CPU time, user and system, of the server's processes so far."""
        return sum(
            _session_s(entry, self.process.pid) for entry in Path("/proc").iterdir() if entry.name.isdigit()
        )

    def check_runs(self) -> None:
        """Raise BenchError with the last line of output if the process has ended."""
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise BenchError(f"{self.contestant} ended with status {self.process.returncode}: {lines[-1]}")


@contextmanager
def running(contestant: Contestant, network: Network) -> Iterator[ServerProcess]:
    """Run ``contestant`` on ``network``, with the CPU affinity of this process.

    Raises:
        ContestantMissingError: a package that it needs is missing.
        BenchError: the server ended, or did not listen within two minutes.
    """
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "log"
        start = launch(contestant, network, port_file=port_file, free_port=_free_port())
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ending_with_us(start.command),
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment_without_settings() | start.environment,
                start_new_session=True,  # what `processor_s` adds up and `_stop` ends
            )
        try:
            yield _wait_until_listening(ServerProcess(contestant, process, 0, log), port_file)
        finally:
            _stop(process)


def _wait_until_listening(server: ServerProcess, port_file: Path) -> ServerProcess:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        server.check_runs()
        if port_file.exists():
            port = int(port_file.read_text())
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return ServerProcess(server.contestant, server.process, port, server.log)
        time.sleep(0.05)
    raise BenchError(f"{server.contestant} did not listen within {_START_LIMIT_S:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # usual: nothing of the session is left
        os.killpg(process.pid, signal.SIGKILL)


def _session_s(entry: Path, session: int) -> float:
    """Return the CPU seconds of a process, to the nanosecond, if it belongs to ``session``."""
    try:
        # After the name, which is in brackets and may hold anything: field 3 is the state, 6 the session
        # (man 5 proc).
        if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) != session:
            return 0.0
        # The clock of another process, as clock_getcpuclockid(3) returns it.
        return time.clock_gettime((~int(entry.name) << 3) | 2)
    except OSError:  # ended meanwhile
        return 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
