"""`foldserve` with a planted slowdown, to see the check fail: ``MICROSECONDS serve ...``.

Each inference request burns so many microseconds of CPU time more, on the thread that received it.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foldserve.cli import main
from foldserve.serving.services.inference import InferenceService

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def burn(microseconds: float) -> None:
    """Spend so much CPU time on this thread."""
    until_s = time.thread_time() + microseconds / 1e6
    while time.thread_time() < until_s:
        pass


@contextmanager
def slowed(microseconds: float) -> Iterator[None]:
    """Plant the slowdown in this process for the block; 0 plants nothing."""
    submit = InferenceService.submit

    def slowed_submit(service: InferenceService, requests: Sequence[Any], *others: Any, **named: Any) -> None:
        burn(microseconds * len(requests))
        submit(service, requests, *others, **named)

    if microseconds:
        InferenceService.submit = slowed_submit  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        InferenceService.submit = submit  # type: ignore[method-assign]


if __name__ == "__main__":
    with slowed(float(sys.argv.pop(1))):
        sys.exit(main())
