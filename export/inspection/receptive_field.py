"""Computes receptive fields: the part of the image that a value can depend on (Araujo et al. 2019, Distill).

Along each axis a map has two numbers: the ``size`` in pixels of the window that one value depends on, and the
``jump`` in pixels from one value's window to its neighbour's. A kernel of k values, ``dilation``
apart, adds ``(k - 1) * dilation * jump`` to the size; a stride multiplies the jump. If branches meet, the
largest counts. A linear layer and a global mean are kernels as large as the map. Padding counts as pixels, so
a field may be larger than the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class ReceptiveField:
    """Entries per axis (height, width): ``size`` and ``jump`` in pixels, ``positions`` in values of the map.

    A flattened map keeps its ``positions`` until a linear layer joins them.
    """

    size: tuple[int, ...]
    jump: tuple[int, ...]
    positions: tuple[int, ...]

    def through_window(
        self,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        positions: Sequence[int],
    ) -> ReceptiveField:
        """Return the field after a convolution or pooling whose output is a map of ``positions``."""
        size = tuple(
            own + (k - 1) * d * jump
            for own, k, d, jump in zip(self.size, kernel, dilation, self.jump, strict=True)
        )
        jump = tuple(jump * s for jump, s in zip(self.jump, stride, strict=True))
        return ReceptiveField(size, jump, tuple(positions))

    def through_whole_map(self) -> ReceptiveField:
        """Return the field of a value computed from all positions."""
        ones = (1,) * len(self.size)
        return self.through_window(kernel=self.positions, stride=ones, dilation=ones, positions=ones)


def join(fields: Sequence[ReceptiveField]) -> ReceptiveField | None:
    """Return the field after branches meet; None if they have different numbers of axes."""
    if len({len(field.size) for field in fields}) != 1:
        return None
    return ReceptiveField(
        size=_largest(field.size for field in fields),
        jump=_largest(field.jump for field in fields),
        positions=_largest(field.positions for field in fields),
    )


def _largest(sides: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(max(axis) for axis in zip(*sides, strict=True))
