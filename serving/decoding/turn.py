"""Decodes the images of one turn, one after the other, until its time is over."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from foldserve.imaging import ImageError, ImageSpec, check_cost, prepare_picture, read_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

# A request yields to others after this time: an image of some megapixels, or hundreds of small ones.
_TURN_S = 0.05
# Pixels as counted by Picture.work, some 0.4 s: 30 Mi in one scan, 20 Mi in a progressive JPEG of 10 scans.
_LONG_WORK = 32 * 1024 * 1024


@dataclass(frozen=True)
class TurnRules:
    """How the images of a turn are decoded.

    Attributes:
        spec: the input of the network.
        max_pixels: most pixels, width times height, of one image.
        takes_long: whether images that take long are decoded too.
    """

    spec: ImageSpec
    max_pixels: int
    takes_long: bool


class End(IntEnum):
    """Why a turn ended."""

    TIME = 0  # or all are decoded
    LONG = 1  # the next image takes long
    REFUSED = 2  # the next image cannot be decoded
    FAULT = 3  # the decoder has a fault, which the message describes


@dataclass(frozen=True)
class Outcome:
    """How many images a turn decoded, why it ended, and if it was refused or a fault, the reason."""

    done_count: int
    end: End
    message: str = ""


def decode_turn(images: Sequence[bytes], rules: TurnRules, rows: NDArray[np.uint8]) -> Outcome:
    """Decode the first of ``images`` into ``rows`` [N, C, H, W], at least one if it is not refused."""
    stop_s = time.monotonic() + _TURN_S
    for index, image in enumerate(images):
        try:
            picture = read_picture(image)
            check_cost(picture, rules.max_pixels)
            if picture.work > _LONG_WORK and not rules.takes_long:
                return Outcome(index, End.LONG)
            rows[index] = prepare_picture(picture, rules.spec, max_pixels=rules.max_pixels)
        except ImageError as error:
            return Outcome(index, End.REFUSED, str(error))
        if time.monotonic() >= stop_s:
            return Outcome(index + 1, End.TIME)
    return Outcome(len(images), End.TIME)
