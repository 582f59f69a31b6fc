"""A network that fails on one kind of image and gives NaN for another, for what its neighbours then get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.artifact import IMAGE, LOGITS
from tests.serving.artifacts import TinyNetwork

if TYPE_CHECKING:
    from numpy.typing import NDArray

# First pixels. BREAKS is looked up beyond a table's end, which ONNX Runtime refuses for the whole execution.
# The table has NaN for GIVES_NAN and zero for all others.
BREAKS, GIVES_NAN = 255, 254


class FragileNetwork(TinyNetwork):
    """Gives TinyNetwork's logits for every image whose first pixel is neither BREAKS nor GIVES_NAN."""

    def random_images(self, count: int, seed: int = 0) -> NDArray[np.uint8]:
        """Return seeded noise that it is sound on."""
        images = super().random_images(count, seed)
        images[:, 0, 0, 0] //= 2
        return images

    def image_that(self, first_pixel: int) -> NDArray[np.uint8]:
        """Return one image [1, C, H, W] that does what BREAKS or GIVES_NAN says."""
        image = self.random_images(1)
        image[0, 0, 0, 0] = first_pixel
        return image

    def to_onnx(self) -> bytes:
        """Return the content of a model.onnx: TinyNetwork's, and a table's entry added to the logits."""
        model = onnx.load_from_string(super().to_onnx())
        graph = model.graph
        (logits,) = [node for node in graph.node if LOGITS in node.output]
        logits.output[0] = "sound"
        table = np.zeros(BREAKS, np.float32)
        table[GIVES_NAN] = np.nan
        constants = {"table": table, "start": [0, 0, 0], "stop": [1, 1, 1], "axes": [1, 2, 3]}
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
        )
        place = list(graph.node).index(logits) + 1
        added = [
            helper.make_node("Slice", [IMAGE, "start", "stop", "axes"], ["first"]),
            helper.make_node("Cast", ["first"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["entry"]),
            helper.make_node("Flatten", ["entry"], ["entries"]),
            helper.make_node("Add", ["sound", "entries"], [LOGITS]),
        ]
        for offset, node in enumerate(added):
            graph.node.insert(place + offset, node)
        onnx.checker.check_model(model)
        return model.SerializeToString()
