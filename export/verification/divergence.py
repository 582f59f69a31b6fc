"""Finds the first layer that differs, once a parity check has failed.

A value has the same name in the unfolded network and in the exported graph, since folding keeps the name of a
batch norm's output for the layer that now computes it. So intermediate values can be compared by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from foldserve.artifact.format import IMAGE
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Relative to a layer's largest value. Rounding errors are about 100 times smaller, mistakes far larger.
_FRACTION = 1e-4


def first_divergence(
    expected: Mapping[str, NDArray[np.float32]], content: bytes, images: NDArray[np.uint8]
) -> str:
    """Say in one sentence which layer of ``content``, a ``model.onnx``, is the first to differ.

    Args:
        expected: the unfolded network's float tensors for ``images``, by name.
        content: the exported file.
        images: uint8 [N, C, H, W].
    """
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
            # The weight of a layer, or the shift of a batch norm that became a multiply and add.
            own = next((value for value in node.input if value.endswith((".weight", ".shift"))), "")
            layer = own.rpartition(".")[0] or node.op_type
            return f"the first layer to differ is {layer} (value {name!r}), by up to {error:.3g}"
    return "no single layer differs: rounding errors add up over the layers"
