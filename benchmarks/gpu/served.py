"""Times a server that runs on the device: client processes load it, and every answer's shape is checked."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from demo.children import ending_with_us, environment_without_settings
from serving.artifact import LOGITS
from serving.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from benchmarks.gpu.networks import Network

_START_S = 120.0


@dataclass(frozen=True)
class Load:
    """Processes with so many callers each; a caller has one request of ``rows`` images under way."""

    processes: int
    callers: int
    rows: int

    def __str__(self) -> str:
        """Return the load in words, for a table."""
        return f"{self.processes * self.callers} callers x {self.rows}"


@contextmanager
def running_server(repository: Path, device: str, *flags: str) -> Iterator[str]:
    """Serve ``repository`` on ``device`` in a process of its own; yield its address.

    Raises:
        RuntimeError: it ended or did not get ready; the message has the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        port_file, log = Path(folder, "port"), Path(folder, "log")
        command = [sys.executable, "-m", "foldserve", "serve", "--repository", str(repository)]
        command += ["--device", device, "--port", "0", "--metrics-port", "0", "--port-file", str(port_file)]
        with log.open("wb") as output:
            server = subprocess.Popen(
                ending_with_us([*command, *flags]),
                stdout=output,
                stderr=output,
                env=environment_without_settings(),
            )
        try:
            deadline_s = time.monotonic() + _START_S
            while not (port_file.exists() and port_file.read_text().strip()):
                if server.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"the server did not get ready:\n{log.read_text()[-3000:]}")
                time.sleep(0.1)
            address = f"127.0.0.1:{port_file.read_text().strip()}"
            _wait_until_ready(address, log, deadline_s)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def measure(address: str, model: str, network: Network, load: Load, seconds: float) -> tuple[float, float]:
    """Return images/s and the median latency in milliseconds under ``load``."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(load.processes) as pool:
        images = np.random.default_rng(0).integers(0, 256, (load.rows, *network.image_shape), dtype=np.uint8)
        arguments = (address, model, images, load.callers, seconds)
        results = [pool.apply_async(_client, arguments) for _ in range(load.processes)]
        answers = [result.get(timeout=seconds + _START_S) for result in results]
    latencies_s = sorted(latency_s for latencies, _ in answers for latency_s in latencies)
    images_per_s = sum(len(latencies) * load.rows / took_s for latencies, took_s in answers)
    return images_per_s, 1000 * latencies_s[len(latencies_s) // 2]


def _client(
    address: str, model: str, images: NDArray[np.uint8], callers: int, seconds: float
) -> tuple[list[float], float]:
    """Load the server from this process; return each request's seconds, and how long it took in all."""
    latencies_s: list[float] = []
    with Client(address) as client:
        client.infer(model, images)  # connected, and warm
        started_s = time.perf_counter()

        def call() -> None:
            while (begun_s := time.perf_counter()) < started_s + seconds:
                assert len(client.infer(model, images)[LOGITS]) == len(images)
                latencies_s.append(time.perf_counter() - begun_s)

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return latencies_s, time.perf_counter() - started_s


def _wait_until_ready(address: str, log: Path, deadline_s: float) -> None:
    with Client(address) as client:
        while not any(entry.state == "READY" for entry in client.index()):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no model got ready:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
