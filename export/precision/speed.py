"""Measures which of two files is faster on this machine, at given batch sizes, in the server's session.

The two run alternately, call by call: a busy machine slows both, and their ratio stays. On CPUs the server
runs quick models on one thread and others on all, so both are measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import IMAGE, LOGITS
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import CPU_PROVIDER, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# A difference of less than 5 % may be noise.
WORTHWHILE = 1.05

# The median of many short calls ignores interruptions; of long calls only a few fit the time.
_FEWEST_ROUNDS, _MOST_ROUNDS = 7, 400
_TOTAL_S = 1.0
_SEED = 1998


@dataclass(frozen=True)
class Speed:
    """Median milliseconds per execution of both files; a ``ratio`` above 1 means the candidate is faster."""

    provider: str
    threads: int
    batch_size: int
    exact_ms: float
    candidate_ms: float

    @property
    def ratio(self) -> float:
        """The candidate's speed relative to the fp32 file."""
        return self.exact_ms / self.candidate_ms

    def __str__(self) -> str:
        where = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.provider == CPU_PROVIDER else "GPU"
        return f"{self.ratio:.2f}x at batch {self.batch_size}, {where}"


def measure_speed(
    exact: bytes,
    candidate: bytes,
    image_shape: tuple[int, ...],
    batch_sizes: Sequence[int],
    on_measured: Callable[[int], None] = lambda _: None,
) -> list[Speed]:
    """Run both files alternately on noise images, on the device that a server would choose; see `Speed`."""
    speeds = []
    for threads in thread_counts():
        sessions = [Session(content, intra_op_threads=threads) for content in (exact, candidate)]
        for batch_size in batch_sizes:
            shape = (batch_size, *image_shape)
            images = np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)
            exact_s, candidate_s = take_turns([_runs(session, images) for session in sessions])
            speeds.append(
                Speed(
                    provider=sessions[1].provider,
                    threads=threads,
                    batch_size=batch_size,
                    exact_ms=1000 * exact_s,
                    candidate_ms=1000 * candidate_s,
                )
            )
            on_measured(1)
        if sessions[0].provider != CPU_PROVIDER:
            break  # threads make no difference on a GPU
    return speeds


def thread_counts() -> list[int]:
    """Return the numbers of threads that the server may use for a model: one, and one per CPU."""
    return sorted({1, usable_cpus()})


def take_turns(programs: Sequence[Callable[[], object]], total_s: float = _TOTAL_S) -> list[float]:
    """Return the median seconds per call of each program, called alternately for about ``total_s`` seconds.

    Every second round runs backwards, so that no program always follows the same other.
    """
    for program in programs:
        program()  # the first call allocates and plans
    # The least of three: an interrupted call must not reduce the number of rounds.
    round_s = sum(min(_seconds(program) for _ in range(3)) for program in programs)
    rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, round(total_s / round_s)))
    seconds: list[list[float]] = [[] for _ in programs]
    for turn in range(rounds):
        order = range(len(programs)) if turn % 2 == 0 else reversed(range(len(programs)))
        for index in order:
            seconds[index].append(_seconds(programs[index]))
    return [median(times) for times in seconds]


def _seconds(program: Callable[[], object]) -> float:
    started = time.perf_counter()
    program()
    return time.perf_counter() - started


def _runs(session: Session, images: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: session.run([LOGITS], {IMAGE: images})
