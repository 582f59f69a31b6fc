"""Sends pictures with h2load, and decodes them without any server."""

from __future__ import annotations

import re
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.serving.errors import BenchError
from foldserve.demo.children import ending_with_us
from foldserve.imaging import prepare_image
from foldserve.runtime.cpus import usable_cpus

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.serving.server_process import ServerProcess
    from foldserve.imaging import ImageSpec

_RUN_LIMIT_S = 600
# Enough that every decoding thread has a picture while others are on their way.
CALLERS = 8
_DATA_HEADER_BYTES = 5  # of each gRPC message: the compressed flag and the length


class Rate(NamedTuple):
    """Pictures per second, and microseconds of CPU time per picture."""

    pictures_per_s: float
    cpu_us: float


def decode_alone(picture: bytes, spec: ImageSpec, count: int) -> Rate:
    """Decode ``picture`` ``count`` times on all CPUs, in this process."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for _ in pool.map(lambda _: prepare_image(picture, spec), range(count)):
            pass
    cpu_s = time.process_time() - cpu_s
    return Rate(count / (time.perf_counter() - started_s), cpu_s / count * 1e6)


def write_body(file: Path, message: bytes) -> None:
    """Write ``message`` to ``file`` as h2load sends it."""
    file.write_bytes(struct.pack(">BI", 0, len(message)) + message)


def send_pictures(server: ServerProcess, method: str, body: Path, count: int) -> Rate:
    """Send ``count`` requests of one picture each; the CPU time is the server's.

    Raises:
        BenchError: h2load failed, or not every request was answered with a message.
    """
    headers = ["--header=content-type: application/grpc", "--header=te: trailers"]
    flags = [f"--requests={count}", f"--clients={CALLERS}", "--max-concurrent-streams=1", f"--data={body}"]
    command = ["h2load", *flags, *headers, f"http://127.0.0.1:{server.port}{method}"]
    before_s = server.processor_s()
    finished = subprocess.run(
        ending_with_us(command), capture_output=True, text=True, timeout=_RUN_LIMIT_S, check=False
    )
    server.check_runs()
    rate = re.search(r"([\d.]+) req/s", finished.stdout)
    succeeded = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", finished.stdout)
    received = re.search(r"\((\d+)\) data", finished.stdout)
    if finished.returncode != 0 or rate is None or succeeded is None or received is None:
        raise BenchError(f"h2load failed: {(finished.stderr or finished.stdout).strip()[-200:]}")
    # A gRPC error has no data; an answer has some hundred bytes.
    least_bytes = count * (_DATA_HEADER_BYTES + 1)
    if int(succeeded.group(1)) != count or int(received.group(1)) < least_bytes:
        raise BenchError(f"{server.contestant} did not answer all of {count} pictures: {succeeded.group()}")
    return Rate(float(rate.group(1)), (server.processor_s() - before_s) / count * 1e6)


class Repeated:
    """Sends pictures again and again from a thread, until it is left; a context manager.

    Raises when it is left:
        BenchError: a picture was not answered.
    """

    def __init__(self, server: ServerProcess, method: str, body: Path, count: int) -> None:
        self._fault: BenchError | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send, args=(server, method, body, count))

    def __enter__(self) -> Repeated:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until the last ones are answered."""
        self._stopping.set()
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _send(self, server: ServerProcess, method: str, body: Path, count: int) -> None:
        try:
            while not self._stopping.is_set():
                send_pictures(server, method, body, count)
        except BenchError as error:
            self._fault = error
