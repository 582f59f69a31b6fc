"""How much a message may hold: bytes, as the flag says, else what the models that serve need; and images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.index import ModelIndex

_MIB = 1024 * 1024
# Pixels as typed contents: what takes the parser 40 ms is taken whatever the models.
LEAST_TYPED_BYTES = 8 * _MIB
# Eight encoded images of 4 MiB, which is what our own client sends at once.
_LEAST_BYTES = 32 * _MIB
# What the wire takes by default: it is set before any model is loaded, and must not depend on them.
_MOST_BYTES = 128 * _MIB
# As typed contents a pixel above 127 takes two bytes.
_BYTES_A_VALUE = 2
# Names, shape, id and parameters.
_SLACK_BYTES = 64 * 1024


class MessageLimit:
    """The largest message that is taken.

    By default it follows the models: when a larger one is loaded, larger messages are taken from then on.

    Attributes:
        wire_bytes: what a transport must be able to take. Above it, it may refuse in words of its own.
    """

    def __init__(self, index: ModelIndex, max_bytes: int | None) -> None:
        self._index = index
        self._max_bytes = max_bytes
        # Messages just above the limit are still read, so that they are refused in our words.
        self.wire_bytes = _MOST_BYTES if max_bytes is None else 2 * max_bytes

    def allows(self, byte_count: int) -> bool:
        """Tell whether a message of ``byte_count`` bytes is taken."""
        # The first comparison answers for nearly all messages, without going through the models.
        return byte_count <= (self._max_bytes or _LEAST_BYTES) or byte_count <= self.max_bytes()

    def max_bytes(self) -> int:
        """Return the limit as it is now."""
        if self._max_bytes is not None:
            return self._max_bytes
        return min(max(_LEAST_BYTES, self._needed_bytes()), _MOST_BYTES)

    def max_typed_bytes(self) -> int:
        """Return how many bytes of typed pixels are taken: a full batch of any model that serves now."""
        return max(LEAST_TYPED_BYTES, self._needed_bytes())

    def too_small_for(self) -> dict[str, int]:
        """Return the models of which not even a full batch fits, with the MiB that one needs."""
        limit_bytes = self.max_bytes()
        needed = {
            f"{model.name}/{model.version}": _full_batch_bytes(model) for model in self._index.ready_models()
        }
        return {name: math.ceil(size / _MIB) for name, size in needed.items() if size > limit_bytes}

    def _needed_bytes(self) -> int:
        return max(map(_full_batch_bytes, self._index.ready_models()), default=0)


def _full_batch_bytes(model: ServedModel) -> int:
    image_bytes = math.prod(model.input.shape[1:])
    return _BYTES_A_VALUE * model.settings.max_batch_size * image_bytes + _SLACK_BYTES
