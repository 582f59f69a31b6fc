"""Finds out which part of a picture a label depends on, by hiding one part after the other (occlusion).

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014, section 4.2
(https://arxiv.org/abs/1311.2901). The server needs no support for it: it is asked for the logits of the
picture with each part hidden.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# Logits float32 [N, K] of images uint8 [N, C, H, W].
Logits: TypeAlias = "Callable[[NDArray[np.uint8]], NDArray[np.float32]]"

# Parts along each side. The first grid is for every model; the finest other one that the time allows follows.
_FIRST_CELLS = 5
_FINER_CELLS = (14, 11, 8)
# Length of the hidden squares as a share of the picture's sides. They overlap: on a finer grid they are as
# large, and closer to each other. Smaller ones leave enough of an object for its label to stay.
_SQUARE = 0.3
BUDGET_S = 1.0
# Smallest fall of the log-odds that says something: of a probability of 50 % to 49 %.
LEAST_DROP = 0.04
# Estimates from the first grid are rough, and drawing takes time too.
_BUDGET_SHARE = 0.7
# Far below the 32 MiB that every server accepts, and enough for full batches.
MAX_REQUEST_BYTES = 8 * 1024 * 1024
MAX_REQUEST_IMAGES = 256
# Log-odds of a probability that float64 does not tell from 1.
_CERTAIN = 40.0


@dataclass(frozen=True)
class Occlusion:
    """How much a label's probability depends on each part of a picture.

    Attributes:
        drops: float64 [G, G], the fall of the label's log-odds where a part is hidden; negative where hiding
            it makes the label likelier. Unlike probabilities, log-odds differ even between parts of a picture
            whose label is certain.
        probability: the label's probability, 0 to 1, with nothing hidden.
        least_probability: the same with the part hidden that matters most.
        request_count: requests that it took.
        image_count: images in them.
        duration_s: seconds that it took.
    """

    drops: NDArray[np.float64]
    probability: float
    least_probability: float
    request_count: int
    image_count: int
    duration_s: float

    @property
    def stands_out(self) -> bool:
        """Whether hiding some part makes the label noticeably less likely."""
        return bool(self.drops.max() >= LEAST_DROP)

    @property
    def heat(self) -> NDArray[np.float64]:
        """How much each part matters, float64 [G, G], 0 to 1; all 0 if none stands out."""
        falls = np.clip(self.drops, 0, None)
        return falls / falls.max() if self.stands_out else np.zeros_like(falls)

    @property
    def strongest(self) -> tuple[int, int]:
        """Row and column of the part that matters most."""
        row, column = divmod(int(np.argmax(self.drops)), self.drops.shape[1])
        return row, column


def occlude(
    logits: Logits,
    pixels: NDArray[np.uint8],
    index: int,
    *,
    fill: Sequence[float],
    temperature: float = 1.0,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> Occlusion:
    """Return how much the label ``index`` depends on each part of ``pixels``, uint8 [C, H, W].

    Args:
        logits: asks the model.
        pixels: the picture as the network sees it.
        index: the label's class index.
        fill: colour of the hidden part, 0 to 1 per channel; the training mean tells the network least.
        temperature: what the model divides its logits by, for the two probabilities.
        budget_s: seconds after which no finer grid is begun. The first grid is always asked for.
        clock: seconds from any start.

    Raises:
        ServingError: for the status that the server returns.
    """
    asked = _Asked(logits, index, temperature, clock)
    colour = np.rint(255 * np.asarray(fill, dtype=np.float64)).clip(0, 255).astype(np.uint8)
    whole = asked.log_odds(pixels[np.newaxis])[0]
    cells = _FIRST_CELLS
    hidden = asked.grid(pixels, cells, colour)
    finer = _finest(asked, budget_s)
    if finer is not None:
        cells = finer
        hidden = asked.grid(pixels, cells, colour)
    return Occlusion(
        drops=(whole - hidden).reshape(cells, cells),
        probability=_to_probability(whole),
        least_probability=_to_probability(hidden.min()),
        request_count=asked.request_count,
        image_count=asked.image_count,
        duration_s=asked.elapsed_s(),
    )


def hide_parts(
    pixels: NDArray[np.uint8], cells: int, colour: NDArray[np.uint8], places: range
) -> NDArray[np.uint8]:
    """Return a copy of ``pixels`` [C, H, W] for each of ``places``, with the square around it filled.

    The places of a grid of ``cells`` x ``cells`` are counted from 0, row by row. ``colour`` is uint8 [C].
    """
    _, height, width = pixels.shape
    copies = np.repeat(pixels[np.newaxis], len(places), axis=0)
    rows, columns = _windows(height, cells), _windows(width, cells)
    for place, copy in zip(places, copies, strict=True):
        row, column = divmod(place, cells)
        copy[:, rows[row], columns[column]] = colour[:, np.newaxis, np.newaxis]
    return copies


def _windows(length: int, cells: int) -> list[slice]:
    """Return the pixels that each place hides along a side of ``length``: at least one."""
    half = max(_SQUARE, 1 / cells) / 2 * length
    windows = []
    for cell in range(cells):
        centre = (cell + 0.5) * length / cells
        begin = min(max(0, round(centre - half)), length - 1)
        windows.append(slice(begin, max(begin + 1, min(length, round(centre + half)))))
    return windows


def _finest(asked: _Asked, budget_s: float) -> int | None:
    """Return the finest grid that fits into what is left of the budget; None if none does."""
    left_s = _BUDGET_SHARE * budget_s - asked.elapsed_s()
    image_s = asked.elapsed_s() / asked.image_count
    return next((cells for cells in _FINER_CELLS if cells * cells * image_s <= left_s), None)


class _Asked:
    """Asks for logits in bounded requests, and counts them."""

    def __init__(self, logits: Logits, index: int, temperature: float, clock: Callable[[], float]) -> None:
        self._logits = logits
        self._index = index
        self._temperature = temperature
        self._clock = clock
        self._begin = clock()
        self.request_count = 0
        self.image_count = 0

    def elapsed_s(self) -> float:
        return self._clock() - self._begin

    def grid(self, pixels: NDArray[np.uint8], cells: int, colour: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the label's log-odds, float64 [cells * cells], with each place of a grid hidden."""
        count = cells * cells
        most = max(1, min(MAX_REQUEST_IMAGES, MAX_REQUEST_BYTES // pixels.nbytes))
        requests = [range(begin, min(count, begin + most)) for begin in range(0, count, most)]
        return np.concatenate(
            [self.log_odds(hide_parts(pixels, cells, colour, places)) for places in requests]
        )

    def log_odds(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return log(p / (1 - p)) of the label's probability p, float64 [N], for uint8 [N, C, H, W]."""
        scaled = self._logits(images).astype(np.float64) / self._temperature
        self.request_count += 1
        self.image_count += len(images)
        others = np.delete(scaled, self._index, axis=1)
        if others.shape[1] == 0:  # a single class, whose probability is always 1
            return np.full(len(scaled), _CERTAIN)
        # Subtracting the largest logit first keeps exp from overflowing.
        largest = others.max(axis=1)
        rest = largest + np.log(np.exp(others - largest[:, np.newaxis]).sum(axis=1))
        odds: NDArray[np.float64] = scaled[:, self._index] - rest
        return odds


def _to_probability(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(log_odds, -_CERTAIN, _CERTAIN))))
