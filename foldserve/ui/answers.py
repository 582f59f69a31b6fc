"""Asks the server for the labels of a picture, and measures how long the answer takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foldserve.serving.client.messages import Description, Label
    from foldserve.serving.client.sync_client import Client


@dataclass(frozen=True)
class Answer:
    """The labels of one picture, the likeliest first, and what computed them.

    Attributes:
        labels: names, class indices and calibrated probabilities.
        description: the version that answered: its name, hash, provider and metadata.
        round_trip_ms: from sending the request until its answer was read.
        queue_ms: of this, how long the request waited in the server's queue.
        compute_ms: of this, how long the model ran.
    """

    labels: Sequence[Label]
    description: Description
    round_trip_ms: float
    queue_ms: float
    compute_ms: float

    @property
    def top(self) -> Label:
        """The likeliest label."""
        return self.labels[0]


def ask(
    client: Client,
    model: str,
    version: str,
    picture: bytes,
    *,
    top_k: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Answer:
    """Return the ``top_k`` likeliest labels of an encoded ``picture``.

    Version "" is the promoted one, or else the newest that is ready.

    Raises:
        ServingError: for the status that the server returns.
    """
    begin = clock()
    answer = client.classify(model, [picture], version, top_k=top_k)
    round_trip_ms = 1000 * (clock() - begin)
    return Answer(
        labels=answer.labels[0],
        description=client.describe(answer.model, answer.version),
        round_trip_ms=round_trip_ms,
        queue_ms=answer.queue_us / 1000,
        compute_ms=answer.compute_us / 1000,
    )
