"""Keeps the constants of a graph in float64 while they are changed, and rounds them once at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from foldserve.export.errors import FoldError
from foldserve.export.graph.constants import float64_of
from foldserve.export.graph.mapped_file import MappedFile
from foldserve.export.graph.simplify import add_initializer

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Copies of more than this wait in temporary files: of a network of 145 million parameters they take 1.2 GB.
_HELD_BYTES = 256 * 1024 * 1024


class Float64Initializers:
    """Holds float64 copies of the initializers that are being changed.

    A weight may take part in several folds (a chain of batch norms, 1/std); until `store` it is not rounded.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._arrays: dict[ir.Value, NDArray[np.float64]] = {}
        self._held: dict[ir.Value, int] = {}  # bytes of those that are in memory

    def read(self, value: ir.Value | None) -> NDArray[np.float64] | None:
        """Return the current value of a constant; None if ``value`` is not a constant.

        An initializer that is also an input is only a default, which a caller may replace.
        """
        if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
            return None
        if value in self._arrays:
            return self._arrays[value]
        unrounded = float64_of(value)
        if unrounded is not None:
            return unrounded
        return value.const_value.numpy().astype(np.float64)

    def write(self, value: ir.Value, array: NDArray[np.float64]) -> None:
        """Set ``value`` to ``array``, of the same shape."""
        self._held.pop(value, None)
        if sum(self._held.values()) + array.nbytes > _HELD_BYTES:
            self._arrays[value] = _from_disk(array)
        else:
            self._arrays[value], self._held[value] = array, array.nbytes

    def add(self, name: str, array: NDArray[np.float64], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Add a constant ``name`` (with a suffix if that is taken), of ``dtype`` once stored."""
        value = add_initializer(self._graph, name, np.zeros(array.shape, dtype.numpy()))
        self.write(value, array)
        return value

    def store(self) -> None:
        """Round every changed constant to its type and write it into the graph.

        Raises:
            FoldError: a constant is larger than its type can hold.
        """
        for value in list(self._arrays):
            array = self._arrays.pop(value)
            assert value.dtype is not None
            with np.errstate(over="ignore"):  # an overflow is refused below
                rounded = np.ascontiguousarray(array.astype(value.dtype.numpy())).reshape(array.shape)
            if not np.isfinite(rounded.astype(np.float64)).all():
                raise FoldError(
                    f"{value.name} is {np.abs(array).max():.3g} once batch norm is folded, more than "
                    f"{value.dtype.name} can hold: a running variance is too small or a scale too large"
                )
            value.const_value = ir.tensor(rounded, name=value.name)
        self._held.clear()


def _from_disk(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``array`` mapped from a temporary file, which ends with it; itself if it cannot be written."""
    try:
        file = MappedFile([array])
    except OSError:  # no folder for temporary files, or its disk is full
        return array
    return np.frombuffer(file.memory, np.float64).reshape(array.shape)
