"""Gives export and verification an ONNX file as a network to fold and compare with."""

from __future__ import annotations

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
    from numpy.typing import NDArray

    from foldserve.export.sources.onnx.normalized_file import NormalizedFile
    from foldserve.export.verification.divergence import LayerRecorder


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

    def layer_recorder(self) -> LayerRecorder:
        """Return what computes every float tensor of the unfolded file, by the name that folding keeps."""
        prepared = self.file.prepared
        model_proto = onnx.shape_inference.infer_shapes(prepared.model_proto)
        outputs = {value.name for value in model_proto.graph.output}
        computed = {name for node in model_proto.graph.node for name in node.output}
        model_proto.graph.output.extend(
            value
            for value in model_proto.graph.value_info
            if value.name in computed - outputs and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        )
        extended = ModelFile(parts_with_weights(model_proto, prepared.weights))
        session = Session(
            extended.loadable, device="cpu", options=RuntimeOptions(arena=False), optimised=False
        )
        names = [spec.name for spec in session.outputs]

        def record(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            feeds = {self.file.image: self.file.network_input(images, np.float32)}
            return dict(zip(names, session.run(names, feeds), strict=True))

        return record
