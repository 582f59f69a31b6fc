"""A network that fails on one kind of image and gives NaN for another, for what its neighbours then get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve.artifact.format import IMAGE, LOGITS
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from numpy.typing import NDArray

# First pixels. With BREAKS in a batch its logits are reshaped to a size that they do not have, which ONNX
# Runtime refuses for the whole execution on every device (CUDA does not check an index into a table).
# GIVES_NAN is looked up in a table that has NaN there and zero everywhere else.
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
        """Return the content of a model.onnx: TinyNetwork's, a reshape and a table's entry behind it."""
        model = onnx.load_from_string(super().to_onnx())
        graph = model.graph
        (logits,) = [node for node in graph.node if LOGITS in node.output]
        logits.output[0] = "sound"
        table = np.zeros(BREAKS + 1, np.float32)
        table[GIVES_NAN] = np.nan
        constants = {"table": table, "start": [0, 0, 0], "stop": [1, 1, 1], "axes": [1, 2, 3]}
        # A batch holds some thousand rows at most, so no number of them fills rows of this width.
        constants |= {"most_sound": np.float32(BREAKS - 0.5), "excess": [10**9 + 7], "any_count": [-1]}
        constants |= {"class_count": [len(self.labels)]}
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
        )
        place = list(graph.node).index(logits) + 1
        added = [
            helper.make_node("Slice", [IMAGE, "start", "stop", "axes"], ["first"]),
            helper.make_node("Cast", ["first"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["entry"]),
            helper.make_node("Flatten", ["entry"], ["entries"]),
            helper.make_node("Cast", ["first"], ["first_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["first_float"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "most_sound"], ["breaks"]),
            helper.make_node("Cast", ["breaks"], ["breaks_count"], to=TensorProto.INT64),
            helper.make_node("Mul", ["breaks_count", "excess"], ["wider_by"]),
            helper.make_node("Add", ["class_count", "wider_by"], ["width"]),
            helper.make_node("Concat", ["any_count", "width"], ["row_shape"], axis=0),
            helper.make_node("Reshape", ["sound", "row_shape"], ["reshaped"]),
            helper.make_node("Add", ["reshaped", "entries"], [LOGITS]),
        ]
        for offset, node in enumerate(added):
            graph.node.insert(place + offset, node)
        onnx.checker.check_model(model)
        return model.SerializeToString()
