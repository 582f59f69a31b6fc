"""Decides the largest message accepted: the flag's value, or as much as the served models need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.index import ModelIndex

_MIB = 1024 * 1024
# Typed pixels that are accepted whatever the models need: the parser takes 40 ms for them.
LEAST_TYPED_BYTES = 8 * _MIB
# Eight encoded images of 4 MiB, which our own client sends at once.
_LEAST_BYTES = 32 * _MIB
# Limit of the transports by default: it is set before any model is loaded, so it cannot depend on them.
_MOST_BYTES = 128 * _MIB
# As typed contents a pixel above 127 takes two bytes.
_BYTES_PER_VALUE = 2
# Names, shape, id and parameters.
_SLACK_BYTES = 64 * 1024


class MessageLimit:
    """Decides which messages are small enough.

    By default the limit follows the models: it rises when one with larger images is loaded.

    Attributes:
        wire_bytes: size that a transport must accept. It may refuse larger messages with a text of its own.

    Args:
        repository: the models.
        max_bytes: the limit; None lets it follow the models.
    """

    def __init__(self, index: ModelIndex, max_bytes: int | None) -> None:
        self._index = index
        self._max_bytes = max_bytes
        # Messages just above the limit are still read, so that they are refused with our text.
        self.wire_bytes = _MOST_BYTES if max_bytes is None else 2 * max_bytes

    def allows(self, byte_count: int) -> bool:
        """Return whether a message of ``byte_count`` bytes is accepted."""
        # The first comparison decides for nearly all messages without looking at the models.
        return byte_count <= (self._max_bytes or _LEAST_BYTES) or byte_count <= self.max_bytes()

    def max_bytes(self) -> int:
        """Return the current limit."""
        if self._max_bytes is not None:
            return self._max_bytes
        return min(max(_LEAST_BYTES, self._needed_bytes()), _MOST_BYTES)

    def max_typed_bytes(self) -> int:
        """Return the most bytes of typed pixels accepted: a full batch of any served model."""
        return max(LEAST_TYPED_BYTES, self._needed_bytes())

    def too_small_for(self) -> dict[str, int]:
        """Return the models whose full batch does not fit, with the MiB that it needs."""
        limit_bytes = self.max_bytes()
        needed = {
            f"{model.name}/{model.version}": _full_batch_bytes(model) for model in self._index.ready_models()
        }
        return {name: math.ceil(size / _MIB) for name, size in needed.items() if size > limit_bytes}

    def _needed_bytes(self) -> int:
        return max(map(_full_batch_bytes, self._index.ready_models()), default=0)


def _full_batch_bytes(model: ServedModel) -> int:
    image_bytes = math.prod(model.input.shape[1:])
    return _BYTES_PER_VALUE * model.settings.max_batch_size * image_bytes + _SLACK_BYTES
