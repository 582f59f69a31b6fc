"""`python -m benchmarks.instances`: several single-threaded instances against one with several threads.

Callers in this process send batches through the server's own batcher and sessions; no network is involved, as
it would take CPU time from both alike. Rounds are interleaved, and the figures are images per second relative
to one single-threaded instance in the same round.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from benchmarks.flags import parse_flags
from benchmarks.serving.networks import Network, alexnet, lenet
from foldserve.runtime.cpus import find_cpus
from foldserve.runtime.runner import ModelRunner
from foldserve.runtime.session import Session
from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.batching.request import Outcome, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_BATCH_SIZE = 32


class InstancesConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Compare instances with threads, as ratios in one run."""

    rounds: int = Field(default=5, ge=1)
    """Interleaved rounds; the table shows medians and, in brackets, the least and the most."""
    seconds: float = Field(default=1.0, gt=0)
    """Length of one measurement."""


@dataclass(frozen=True)
class Load:
    """So many callers, each with one request of ``rows`` images under way at all times."""

    what: str
    callers: int
    rows: int


_LOADS = (
    Load("1 caller, 32 images each", 1, 32),
    Load("16 callers, 1 image each", 16, 1),
    Load("4 callers, 32 images each", 4, 32),
)


class Shape:
    """A batcher over ``instances`` that share one session of ``threads`` each: as a served model has it.

    ``overflow`` more instances run full batches.
    """

    def __init__(self, network: Network, instances: int, threads: int, overflow: int = 0) -> None:
        self.name = f"{instances} x {threads}" + (f", {overflow} overflow" if overflow else "")
        self._network = network
        session = Session(network.model_file.read_bytes(), device="cpu", intra_op_threads=threads)
        self._batcher: DynamicBatcher[Request] = DynamicBatcher(
            ModelRunner(session), max_batch_size=_MAX_BATCH_SIZE, max_queue_rows=8192, max_queue_bytes=1 << 30
        )
        self._batcher.start(instances, overflow)

    def images_per_s(self, load: Load, seconds: float) -> float:
        """Run ``load`` for so long."""
        images = self._network.images(load.rows)
        ends_s = time.perf_counter() + seconds
        counts = [0] * load.callers

        def call(caller: int) -> None:
            while time.perf_counter() < ends_s:
                self._ask(images)
                counts[caller] += load.rows

        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(load.callers)]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - started_s)

    def close(self) -> None:
        """Stop the instances."""
        self._batcher.close(grace_s=5)

    def _ask(self, images: NDArray[np.uint8]) -> None:
        answered = threading.Event()
        outcomes: list[Outcome] = []

        def on_done(_: Request, outcome: Outcome) -> None:
            outcomes.append(outcome)
            answered.set()

        self._batcher.submit([Request(rows=images)], on_done)
        answered.wait()
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]


def run_bench(config: InstancesConfig) -> int:
    """Measure and print the table; return 0."""
    processors = find_cpus()
    count = max(2, processors.usable)
    shapes = ((1, 1), (1, count), (count, 1), (1, 1, count - 1))
    console = Console(width=110)
    console.print(f"processors: {processors}; {config.rounds} rounds of {config.seconds:g} s")
    with tempfile.TemporaryDirectory(prefix="bench-networks-") as folder, ExitStack() as closing:
        for network in (lenet(Path(folder)), alexnet(Path(folder), None)):
            opened = [Shape(network, *shape) for shape in shapes]
            for shape in opened:
                closing.callback(shape.close)
            console.print(_measure(network.name, opened, config))
    return 0


def _measure(name: str, shapes: list[Shape], config: InstancesConfig) -> Table:
    table = Table(
        "load",
        "images/s of 1 x 1",
        *(shape.name for shape in shapes[1:]),
        title=f"{name}: instances x threads",
    )
    for load in _LOADS:
        for shape in shapes:
            shape.images_per_s(load, config.seconds / 4)  # memory is laid out, threads are awake
        rounds = [
            [shape.images_per_s(load, config.seconds) for shape in shapes] for _ in range(config.rounds)
        ]
        ratios = [[row[place] / row[0] for row in rounds] for place in range(1, len(shapes))]
        cells = [f"{statistics.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]" for each in ratios]
        table.add_row(load.what, f"{statistics.median(row[0] for row in rounds):,.0f}", *cells)
    return table


if __name__ == "__main__":
    raise SystemExit(run_bench(parse_flags(InstancesConfig, "benchmarks.instances")))
