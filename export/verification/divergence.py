"""Which layer is the first to differ, once a parity check has failed.

The traced PyTorch graph and the ONNX graph call a value by the same name, and folding keeps the name of a
batch norm's output for the layer that now computes it; so intermediate values can be compared by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from foldserve.artifact.format import IMAGE
from foldserve.export.graph.trace import trace
from foldserve.export.sources.onnx.normalized_file import NormalizedFile
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.training.models import Normalized

# Of a layer's largest value. Rounding stays some hundred times below it, mistakes lie far above.
_FRACTION = 1e-4


def first_divergence(module: Normalized | NormalizedFile, content: bytes, images: NDArray[np.uint8]) -> str:
    """Return one sentence on where ``content``, a ``model.onnx``, first leaves ``module`` on ``images``."""
    if isinstance(module, NormalizedFile):
        expected = _file_values(module, images)
    else:
        expected = _torch_values(module, images)
    model_proto = onnx.load_from_string(content)
    computed = [name for node in model_proto.graph.node for name in node.output]
    outputs = {value.name for value in model_proto.graph.output}
    for name in computed:
        if name in expected and name not in outputs:
            model_proto.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * expected[name].ndim)
            )
    session = Session(model_proto.SerializeToString(), device="cpu")
    names = [name for name in computed if name in expected]
    for name, actual in zip(names, session.run(names, {IMAGE: images}), strict=True):
        error = float(np.abs(actual - expected[name]).max())
        if not error <= _FRACTION * float(np.abs(expected[name]).max()):
            node = next(node for node in model_proto.graph.node if name in node.output)
            # A layer's weight, or the shift of a batch norm that became a multiply and add.
            own = next((value for value in node.input if value.endswith((".weight", ".shift"))), "")
            layer = own.rpartition(".")[0] or node.op_type
            return f"the first layer to differ is {layer} (value {name!r}), by up to {error:.3g}"
    return "no single layer differs by itself: rounding adds up over the layers"


def _torch_values(module: Normalized, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return every float tensor of ``module``'s traced network, by the name it has in the ONNX graph."""
    program = trace(module.network, (images.shape[1], images.shape[2], images.shape[3]))
    assert program.exported_program is not None
    recorder = _Recorder(program.exported_program.module())
    with torch.inference_mode():
        pixels = torch.from_numpy(images).to(torch.float32)
        logits = recorder.run((pixels / 255 - module.mean) / module.std)
    (last,) = (value.name for value in program.model.graph.outputs)
    final = logits[0] if isinstance(logits, tuple | list) else logits
    return recorder.values | {str(last): final.numpy()}


def _file_values(module: NormalizedFile, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return every float tensor that an adopted file computes, unfolded, by the name that folding keeps."""
    model_proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(module.network.prepared))
    outputs = {value.name for value in model_proto.graph.output}
    computed = {name for node in model_proto.graph.node for name in node.output}
    model_proto.graph.output.extend(
        value
        for value in model_proto.graph.value_info
        if value.name in computed - outputs and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    )
    session = Session(model_proto.SerializeToString(), device="cpu", optimised=False)
    names = [spec.name for spec in session.outputs]
    feeds = {module.network.image: module.network_input(images, np.float32)}
    return dict(zip(names, session.run(names, feeds), strict=True))


class _Recorder(torch.fx.Interpreter):
    """Runs a traced graph and keeps what each node computed."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, NDArray[np.float32]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.values[n.name] = result.numpy().copy()
        return result
