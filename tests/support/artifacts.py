"""Tiny artifacts made with onnx alone, so that serving's tests need no torch.

The network is (pixel / 255 - mean) / std, a 3x3 convolution, ReLU, a global mean and a linear layer, with
seeded weights; its reference logits are computed here in float64 by numpy, not by ONNX Runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES, Golden, ModelMetadata
from foldserve.artifact.writer import publish_artifact
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MEAN, STD = 0.25, 0.5
FILTERS = 4


class TinyNetwork:
    """Seeded weights, as an ONNX file and as plain numpy arithmetic."""

    def __init__(self, seed: int = 1, image: ImageSpec | None = None, class_count: int = 3) -> None:
        self.image = image or ImageSpec("L", 8, 8, 8)
        self.labels = tuple(f"label {index}" for index in range(class_count))
        random = np.random.default_rng(seed)
        channels = self.image.channels
        self.kernel = random.normal(size=(FILTERS, channels, 3, 3)).astype(np.float32)
        # Large enough that different images, and different seeds, give clearly different logits.
        self.matrix = (4 * random.normal(size=(FILTERS, class_count))).astype(np.float32)
        self.seed = seed

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits [N, K] of uint8 images [N, C, H, W], in float64 rounded once."""
        seen = (images.astype(np.float64) / 255 - MEAN) / STD
        windows = sliding_window_view(seen, (3, 3), axis=(2, 3))
        features = np.einsum("nchwij,fcij->nfhw", windows, self.kernel.astype(np.float64))
        pooled = np.maximum(features, 0).mean(axis=(2, 3))
        return (pooled @ self.matrix.astype(np.float64)).astype(np.float32)

    def random_images(self, count: int, seed: int = 0) -> NDArray[np.uint8]:
        """Return seeded noise of the input's shape."""
        return np.random.default_rng(seed).integers(0, 256, (count, *self.image.shape), dtype=np.uint8)

    @property
    def metadata(self) -> ModelMetadata:
        channels = self.image.channels
        return ModelMetadata(
            self.labels, (MEAN,) * channels, (STD,) * channels, self.image, {"architecture": "tiny"}
        )

    def to_onnx(self) -> bytes:
        """Return the content of a model.onnx with the artifact's contract."""
        nodes = [
            helper.make_node("Cast", [IMAGE], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels", "scale"], ["unit"]),
            helper.make_node("Sub", ["unit", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["seen"]),
            helper.make_node("Conv", ["seen", "kernel"], ["features"]),
            helper.make_node("Relu", ["features"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "matrix"], [LOGITS]),
            helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1),
        ]
        constants = {"kernel": self.kernel, "matrix": self.matrix, "scale": np.float32(255)}
        constants |= {"mean": np.float32(MEAN), "std": np.float32(STD)}
        class_count = len(self.labels)
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", *self.image.shape])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", class_count])
                for name in (LOGITS, PROBABILITIES)
            ],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, self.metadata.to_props())
        onnx.checker.check_model(model)
        return model.SerializeToString()

    def publish(self, model_folder: Path) -> Path:
        """Publish as the next version, with golden pairs of seeded noise; return the version's folder."""
        model = self.to_onnx()
        images = self.random_images(32, seed=self.seed + 1000)
        runtime_logits = Session(model, device="cpu", intra_op_threads=1).run((LOGITS,), {IMAGE: images})[0]
        # float32 sums of 9-element windows against float64: measured 2e-6 at logits near 10.
        golden = Golden(images, self.logits(images), runtime_logits, 1e-4, 1e-5, synthetic=True)
        return publish_artifact(model_folder, model=model, golden=golden, manifest={"precision": "fp32"})
