"""Sends large requests as fast as they are answered, and small ones at fixed times beside them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from benchmarks.fairness.channels import LIMIT_S, Call, connected
from benchmarks.serving.errors import BenchError
from foldserve.demo.children import ending_with_us

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.serving.server_process import ServerProcess


@dataclass(frozen=True)
class Mixture:
    """Large requests of ``large_callers``, ``large_requests`` each one after another, and single images.

    Every caller has a connection of its own. ``large_file`` and ``small_body`` are the messages.
    """

    large_callers: int
    large_requests: int
    large_images: int
    large_file: Path
    small_body: bytes
    small_per_s: float


@dataclass(frozen=True)
class Heard:
    """How it went: images per second of the large requests, milliseconds of each small one.

    ``server_us_per_image`` is CPU time.
    """

    large_images_per_s: float
    server_us_per_image: float
    small_ms: list[float] = field(repr=False)

    @property
    def small_p99_ms(self) -> float:
        """99 of 100 small requests were answered within this time."""
        return float(np.percentile(self.small_ms, 99))


def send(server: ServerProcess, mixture: Mixture) -> Heard:
    """Send ``mixture``, return how it went; small requests are sent until the large ones are answered.

    Raises:
        BenchError: a large request failed.
        grpc.RpcError: a small one did.
    """
    done = threading.Event()
    before_s = server.processor_s()
    numbers = (server.port, mixture.large_file, mixture.large_callers, mixture.large_requests)
    module = "benchmarks.fairness.large_callers"
    with (
        connected(server.port) as call,
        subprocess.Popen(
            ending_with_us([sys.executable, "-m", module, *numbers]), stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        took: list[str] = []
        reader = threading.Thread(target=_read_line, args=(child.stdout, took, done))
        reader.start()
        small_ms = send_at_fixed_times(call, mixture.small_body, mixture.small_per_s, done)
        reader.join()
    if child.returncode or not took[0]:
        raise BenchError(f"a large request failed: the callers ended with status {child.returncode}")
    images = mixture.large_callers * mixture.large_requests * mixture.large_images
    server_us = (server.processor_s() - before_s) / (images + len(small_ms)) * 1e6
    return Heard(images / float(took[0]), server_us, small_ms)


def send_small(server: ServerProcess, mixture: Mixture, seconds: float) -> Heard:
    """Send the small requests alone for so long."""
    done = threading.Event()
    timer = threading.Timer(seconds, done.set)
    timer.start()
    with connected(server.port) as call:
        return Heard(0.0, 0.0, send_at_fixed_times(call, mixture.small_body, mixture.small_per_s, done))


def _read_line(stream: IO[str], lines: list[str], done: threading.Event) -> None:
    lines.append(stream.readline())
    done.set()


def send_at_fixed_times(call: Call, body: bytes, per_s: float, done: threading.Event) -> list[float]:
    """Send ``body`` at fixed times until ``done``; return the milliseconds from each time to the answer.

    A request is sent whether or not the one before was answered.
    """
    answered_s: dict[int, float] = {}
    futures: list[Any] = []
    started_s = time.perf_counter()
    while not done.wait(max(0.0, started_s + len(futures) / per_s - time.perf_counter())):
        future = call.future(body, timeout=LIMIT_S)
        number = len(futures)
        future.add_done_callback(lambda _, number=number: answered_s.update({number: time.perf_counter()}))
        futures.append(future)
    for future in futures:
        future.result()
    while len(answered_s) < len(futures):  # callbacks run after the result is there
        time.sleep(0.001)
    return [(answered_s[number] - started_s - number / per_s) * 1e3 for number in range(len(futures))]
