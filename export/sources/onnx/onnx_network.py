"""Gives export and verification an ONNX file as a network to fold and compare with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from foldserve.export.graph.constants import keep_float64
from foldserve.export.graph.model_bytes import parts_with_weights
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.graph.weights_apart import attach_weights
from foldserve.export.sources.onnx.onnx_reference import OnnxReference
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from foldserve.export.sources.onnx.normalized_file import NormalizedFile
    from foldserve.export.verification.divergence import Recording


@dataclass(frozen=True)
class OnnxNetwork:
    """A network that comes as an ONNX file; implements `foldserve.export.sources.source.Network`."""

    file: NormalizedFile

    def to_graph(self) -> ir.Model:
        """Return a new graph of the prepared file, to be folded in place."""
        model = ir.from_proto(self.file.prepared.model_proto)
        attach_weights(model, self.file.prepared.weights)
        keep_float64(model.graph, self.file.prepared.exact_weights)
        return model

    def reference(self) -> OnnxReference:
        """Return the given file's own logits, computed by ONNX Runtime without optimisations."""
        return OnnxReference(self.file)

    def release_weights(self) -> None:
        """Do nothing: the weights of a large file wait in temporary files, and are read from there."""

    def layer_recorder(self) -> OnnxLayerRecorder:
        """Return what computes every float tensor of the unfolded file, by the name that folding keeps."""
        return OnnxLayerRecorder(self.file)


@dataclass(frozen=True)
class OnnxLayerRecorder:
    """Runs an unfolded file; implements `foldserve.export.verification.divergence.LayerRecorder`."""

    file: NormalizedFile

    def image_bytes(self, image: NDArray[np.uint8]) -> dict[str, int]:
        """Return the size of every tensor for one image uint8 [1, C, H, W].

        A tensor of which that is not known counts as much as the largest of the others.
        """
        model_proto = onnx.ModelProto()
        model_proto.CopyFrom(self.file.prepared.model_proto)
        (given,) = (value for value in model_proto.graph.input if value.name == self.file.image)
        shape = self.file.network_input(image, np.float32).shape
        for dimension, size in zip(given.type.tensor_type.shape.dim, shape, strict=True):
            dimension.dim_value = size
        sizes = {value.name: _bytes(value) for value in _float_values(model_proto)}
        largest = max((size for size in sizes.values() if size), default=0)
        return {name: size or largest for name, size in sizes.items()}

    def recording(self, names: Collection[str]) -> Recording:
        """Return what computes the tensors called ``names``, and holds no others."""
        prepared = self.file.prepared
        model_proto = onnx.ModelProto()
        model_proto.CopyFrom(prepared.model_proto)
        outputs = {value.name for value in model_proto.graph.output}
        model_proto.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in names
            if name not in outputs
        )
        extended = ModelFile(parts_with_weights(model_proto, prepared.weights))
        session = Session(
            extended.loadable, device="cpu", options=RuntimeOptions(arena=False), optimised=False
        )

        def record(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            feeds = {self.file.image: self.file.network_input(images, np.float32)}
            return dict(zip(names, session.run(list(names), feeds), strict=True))

        return record


def _float_values(model_proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the float32 values that the nodes compute, with their shapes as far as they can be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model_proto, data_prop=True).graph
    computed = {name for node in inferred.node for name in node.output}
    return [
        value
        for value in [*inferred.value_info, *inferred.output]
        if value.name in computed and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]


def _bytes(value: onnx.ValueInfoProto) -> int:
    """Return the size of a float32 value; 0 if a side is not known."""
    if not value.type.tensor_type.HasField("shape"):
        return 0
    return 4 * math.prod(side.dim_value for side in value.type.tensor_type.shape.dim)
