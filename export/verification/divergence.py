"""Finds the first layer that differs, once a parity check has failed.

A value has the same name in the unfolded network and in the exported graph, since folding keeps the name of a
batch norm's output for the layer that now computes it. So intermediate values can be compared by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx

from foldserve.artifact.format import IMAGE
from foldserve.export.graph.model_file import ModelFile
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    # Computes some of a network's tensors, by name, for images uint8 [N, C, H, W].
    Recording = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]

# Relative to a layer's largest value. Rounding errors are about 100 times smaller, mistakes far larger.
_FRACTION = 1e-4
# The layers' values that are held at a time, of the network; the file's are as many.
_VALUES_BYTES = 128 * 1024 * 1024
# Two images show what one does not: a file that mixes up the images of a batch.
_FEWEST = 2


class LayerRecorder(Protocol):
    """Computes the float tensors of a network's layers, by their names in the graph."""

    def image_bytes(self, image: NDArray[np.uint8]) -> Mapping[str, int]:
        """Return the size of every tensor for one image uint8 [1, C, H, W]."""

    def recording(self, names: Collection[str]) -> Recording:
        """Return what computes the tensors called ``names``, and holds no others."""


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


def first_divergence(recorder: LayerRecorder, file: ModelFile, images: NDArray[np.uint8]) -> str:
    """Say in one sentence which layer of ``file``, a ``model.onnx``, is the first to differ.

    Layers are compared in groups, and each group on a few images at a time, as many as fit into little
    memory. Each group runs the whole network again, so where there are many, fewer images are compared.

    Args:
        recorder: computes the unfolded network's float tensors for images.
        file: the exported file.
        images: uint8 [N, C, H, W].
    """
    sizes = recorder.image_bytes(images[:1])
    nodes, outputs = _nodes(file.content)
    names = [name for node in nodes for name in node.output if name in sizes]
    groups = list(_groups(names, sizes))
    images = images[: max(_FEWEST, len(images) // max(1, len(groups)))]
    for group in groups:
        extended = _with_outputs(file, [name for name in group if name not in outputs])
        differences = _compare(recorder, extended, group, images, sizes)
        mistake = next((name for name in group if differences[name].is_mistake), None)
        if mistake is not None:
            layer, error = _layer(mistake, nodes), differences[mistake].error
            return f"the first layer to differ is {layer} (value {mistake!r}), by up to {error:.3g}"
    return "no single layer differs: rounding errors add up over the layers"


def _groups(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield ``names`` in order, in groups of which the fewest images' values fit into the memory allowed."""
    group: list[str] = []
    held = 0
    for name in names:
        size = _FEWEST * sizes[name]
        if group and held + size > _VALUES_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _compare(
    recorder: LayerRecorder,
    extended: ModelFile,
    group: Sequence[str],
    images: NDArray[np.uint8],
    sizes: Mapping[str, int],
) -> dict[str, _Difference]:
    """Return the difference of each value of a group, which ``extended`` outputs, over all images."""
    session = Session(extended.loadable, device="cpu", options=RuntimeOptions(arena=False))
    record = recorder.recording(group)
    differences = {name: _Difference() for name in group}
    step = max(_FEWEST, _VALUES_BYTES // max(1, sum(sizes[name] for name in group)))
    for start in range(0, len(images), step):
        some = images[start : start + step]
        expected = record(some)
        for name, actual in zip(group, session.run(list(group), {IMAGE: some}), strict=True):
            differences[name].add(actual, expected[name])
    return differences


def _layer(value: str, nodes: Sequence[onnx.NodeProto]) -> str:
    """Return the name of the layer that computes ``value``; its operator's where it has none."""
    node = next(node for node in nodes if value in node.output)
    if (
        node.op_type == "Unsqueeze"
    ):  # a linear layer that was a convolution: its rows become maps of one pixel
        node = next((each for each in nodes if node.input[0] in each.output), node)
    # The weight of a layer, or the shift of a batch norm that became a multiply and add.
    own = next((name for name in node.input if name.endswith((".weight", ".shift"))), "")
    return own.rpartition(".")[0] or node.op_type


def _nodes(content: bytes) -> tuple[Sequence[onnx.NodeProto], set[str]]:
    """Return the nodes of a file, and the names of its outputs."""
    message = onnx.load_from_string(content)
    graph = onnx.GraphProto(node=message.graph.node)  # a copy: the message goes, with all weights
    return list(graph.node), {value.name for value in message.graph.output}


def _with_outputs(file: ModelFile, names: Collection[str]) -> ModelFile:
    """Return the file that outputs the float values called ``names`` too.

    Where a message's bytes come behind another's, protobuf takes both for one message
    (https://protobuf.dev/programming-guides/encoding), so that the weights need not be parsed.
    """
    more = onnx.ModelProto()
    more.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return ModelFile([file.content, more.SerializeToString()])
