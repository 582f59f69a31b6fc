"""Finds the first layer that differs, once a parity check has failed.

A value has the same name in the unfolded network and in the exported graph, since folding keeps the name of a
batch norm's output for the layer that now computes it. So intermediate values can be compared by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from foldserve.artifact.format import IMAGE
from foldserve.export.graph.model_file import ModelFile
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    # Computes the float tensors of a network's layers for images, by name.
    LayerRecorder = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]

# Relative to a layer's largest value. Rounding errors are about 100 times smaller, mistakes far larger.
_FRACTION = 1e-4
# All layers' values of the images that are compared at a time, of the network; the file's are as many.
_VALUES_BYTES = 128 * 1024 * 1024
# Two images show what one does not: a file that mixes up the images of a batch.
_FEWEST = 2


@dataclass
class _Difference:
    """Largest error of a value over the images seen so far, and its largest number in the network."""

    error: float = 0.0
    largest: float = 0.0

    def add(self, actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Take further images into account."""
        # numpy's maximum of a number and NaN is NaN.
        self.error = float(np.maximum(self.error, np.abs(actual - expected).max()))
        self.largest = float(np.maximum(self.largest, np.abs(expected).max()))

    @property
    def is_mistake(self) -> bool:
        return not self.error <= _FRACTION * self.largest  # NaN is one


def first_divergence(record: LayerRecorder, file: ModelFile, images: NDArray[np.uint8]) -> str:
    """Say in one sentence which layer of ``file``, a ``model.onnx``, is the first to differ.

    A few images are compared at a time, as many as fit into little memory with the values of all layers.

    Args:
        record: computes the unfolded network's float tensors for images, by name.
        file: the exported file.
        images: uint8 [N, C, H, W].
    """
    ranks, image_bytes = _measure(record, images[:_FEWEST])
    content = file.content
    nodes, outputs = _nodes(content)
    names = [name for node in nodes for name in node.output if name in ranks]
    extended = _with_outputs(content, {name: ranks[name] for name in names if name not in outputs})
    del content
    session = Session(extended.loadable, device="cpu", options=RuntimeOptions(arena=False))
    differences = {name: _Difference() for name in names}
    step = max(_FEWEST, _VALUES_BYTES // max(1, image_bytes))
    for start in range(0, len(images), step):
        _compare(record, session, images[start : start + step], differences)
    for name in names:
        if differences[name].is_mistake:
            node = next(node for node in nodes if name in node.output)
            # The weight of a layer, or the shift of a batch norm that became a multiply and add.
            own = next((value for value in node.input if value.endswith((".weight", ".shift"))), "")
            layer = own.rpartition(".")[0] or node.op_type
            error = differences[name].error
            return f"the first layer to differ is {layer} (value {name!r}), by up to {error:.3g}"
    return "no single layer differs: rounding errors add up over the layers"


def _measure(record: LayerRecorder, images: NDArray[np.uint8]) -> tuple[dict[str, int], int]:
    """Return the rank of each value that ``record`` gives, and the size of all of them for one image."""
    values = record(images)
    size = sum(value.nbytes for value in values.values())
    return {name: value.ndim for name, value in values.items()}, size // len(images)


def _compare(
    record: LayerRecorder,
    session: Session,
    images: NDArray[np.uint8],
    differences: Mapping[str, _Difference],
) -> None:
    expected = record(images)
    for name, actual in zip(differences, session.run(list(differences), {IMAGE: images}), strict=True):
        differences[name].add(actual, expected[name])


def _nodes(content: bytes) -> tuple[Sequence[onnx.NodeProto], set[str]]:
    """Return the nodes of a file, and the names of its outputs."""
    message = onnx.load_from_string(content)
    graph = onnx.GraphProto(node=message.graph.node)  # a copy: the message goes, with all weights
    return list(graph.node), {value.name for value in message.graph.output}


def _with_outputs(content: bytes, ranks: Mapping[str, int]) -> ModelFile:
    """Return the file that outputs the values named in ``ranks`` too.

    Where a message's bytes come behind another's, protobuf takes both for one message
    (https://protobuf.dev/programming-guides/encoding), so that the weights need not be parsed.
    """
    more = onnx.ModelProto()
    more.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank)
        for name, rank in ranks.items()
    )
    return ModelFile([content, more.SerializeToString()])
