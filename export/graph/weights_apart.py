"""Keeps the weights of a large ONNX message in a temporary file, in memory only where they are read.

Each check of a message in C++ serialises and parses all of it, and so does a converter of opsets: with 575 MB
of weights, three times that at once. They only need the weights' types and shapes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, external_data_helper, numpy_helper

from foldserve.export.graph.mapped_file import MappedFile
from foldserve.export.graph.model_bytes import parts_with_weights
from foldserve.export.graph.model_file import LARGE_BYTES, ModelFile
from foldserve.export.graph.serialize import LARGE_WEIGHT_BYTES, to_proto_and_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


class Weights(dict[str, ir.TensorProtocol]):
    """Weights by name, which their message has without values."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol] | None = None, *files: MappedFile) -> None:
        """Hold ``tensors``, some of which are in ``files``."""
        super().__init__(tensors or {})
        self.files = files

    def with_others(self, others: Weights) -> Weights:
        """Return these weights and ``others``, which take the place of those of the same names."""
        return Weights({**self, **others}, *self.files, *others.files)

    def release(self) -> None:
        """Let what is in files be read again from there: none of it is in memory until then."""
        for file in self.files:
            file.release()


def set_weights_apart(model_proto: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, Weights]:
    """Return ``model_proto`` without its large float32 weights, and these by name.

    Of such a weight, name, type and shape stay in the message. If all of them together are small, nothing is
    taken out. ``model_proto`` is of no use afterwards; external data of weights is read from ``folder``.

    Raises:
        ValueError, onnx.checker.ValidationError: a weight has not the size that its shape says, or external
            data is not in ``folder``.
    """
    chosen = [tensor for tensor in model_proto.graph.initializer if _is_large(tensor)]
    if sum(map(_byte_count, chosen)) < LARGE_BYTES:
        return model_proto, Weights()
    names = [tensor.name for tensor in chosen]
    shapes = [tuple(tensor.dims) for tensor in chosen]
    try:
        weights = _in_file(names, shapes, (_values(tensor, folder) for tensor in chosen))
    except OSError:
        # No folder for temporary files, or its disk is full; or external data, which is read again then.
        return model_proto, Weights()
    for tensor in chosen:
        _clear(tensor)
    without = onnx.ModelProto()
    without.CopyFrom(model_proto)  # a message keeps the memory of what was cleared
    return without, weights


def write_apart(model: ir.Model, known: Weights) -> tuple[onnx.ModelProto, Weights, ModelFile]:
    """Return ``model`` as a message without its large weights, these by name, and both as a file.

    Weights that are not among ``known``, from `set_weights_apart`, may have been computed; if they are large
    in all, they are kept in a temporary file from now on.
    """
    model_proto, weights = to_proto_and_weights(model)
    file = ModelFile(parts_with_weights(model_proto, weights))
    made = {
        name: tensor
        for name, tensor in weights.items()
        if tensor is not known.get(name) and tensor.dtype == ir.DataType.FLOAT
    }
    kept = Weights(weights).with_others(_kept_in_file(Weights(made)))
    return model_proto, kept.with_others(Weights({}, *known.files)), file


def attach_weights(model: ir.Model, weights: Weights) -> None:
    """Give the initializers of ``model``, made from a message without ``weights``, their values."""
    for name, tensor in weights.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = tensor


def array_of(tensor: onnx.TensorProto, weights: Weights) -> NDArray[Any]:
    """Return the values of an initializer of a message without ``weights``."""
    array: NDArray[Any] = (
        weights[tensor.name].numpy() if tensor.name in weights else numpy_helper.to_array(tensor)
    )
    return array


def _kept_in_file(weights: Weights) -> Weights:
    """Return float32 ``weights`` from a temporary file, if they are large in all."""
    if sum(tensor.nbytes for tensor in weights.values()) < LARGE_BYTES:
        return weights
    shapes = [tuple(tensor.shape.numpy()) for tensor in weights.values()]
    try:
        return _in_file(weights.keys(), shapes, (tensor.numpy() for tensor in weights.values()))
    except OSError:
        return weights


def _in_file(
    names: Iterable[str], shapes: Iterable[tuple[int, ...]], arrays: Iterable[NDArray[Any]]
) -> Weights:
    """Write float32 ``arrays`` into a temporary file; return them as they are there."""
    file = MappedFile(arrays)
    return Weights(
        {
            name: ir.tensor(
                np.frombuffer(file.memory, np.float32, math.prod(shape), place).reshape(shape), name=name
            )
            for name, shape, place in zip(names, shapes, file.places, strict=True)
        },
        file,
    )


def _values(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    if tensor.data_location == TensorProto.EXTERNAL:
        loaded = TensorProto()
        loaded.CopyFrom(tensor)
        external_data_helper.load_external_data_for_tensor(loaded, str(folder))
        tensor = loaded
    array: NDArray[Any] = numpy_helper.to_array(tensor)
    return array


def _clear(tensor: onnx.TensorProto) -> None:
    for field in ("raw_data", "float_data", "external_data", "data_location"):
        tensor.ClearField(field)


def _is_large(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and _byte_count(tensor) >= LARGE_WEIGHT_BYTES


def _byte_count(tensor: onnx.TensorProto) -> int:
    return np.dtype(np.float32).itemsize * math.prod(tensor.dims)
