"""Builds the networks to measure, as model versions: two LeNets and AlexNet-224.

Speed does not depend on what was learnt, so they are made here in seconds, with seeded weights. LeNet-5 and
AlexNet are written down here and need no torch; the LeNet that `make demo` trains, whose maps are wider and
whose batch norm is folded, is made and exported as that one is, or taken from the repository that it left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from foldserve.artifact.format import IMAGE, LOGITS, MODEL_FILE, PROBABILITIES, Golden, ModelMetadata
from foldserve.artifact.golden_limits import max_tolerance
from foldserve.artifact.versions import list_versions
from foldserve.artifact.writer import publish_artifact
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_GOLDEN_COUNT = 32
_GREY = ImageSpec("L", 28, 28, 28)
# As runs prepare pictures by default.
COLOUR_224 = ImageSpec("RGB", 224, 224, 256, "scaled")


@dataclass(frozen=True)
class Network:
    """One served model: its repository and name for foldserve, its file for everybody else."""

    name: str
    repository: Path
    model_file: Path
    image_shape: tuple[int, ...]

    def images(self, count: int) -> NDArray[np.uint8]:
        """Return seeded noise [count, C, H, W]."""
        return np.random.default_rng(count).integers(0, 256, (count, *self.image_shape), dtype=np.uint8)


def lenet(workspace: Path, _repository: Path | None = None) -> Network:
    """Return LeNet-5 with ReLU and max pooling on 28x28 grey images: 61,706 parameters."""
    graph = _Graph(seed=5)
    graph.conv(1, 6, kernel=5, pad=2)
    graph.pool(2, 2)
    graph.conv(6, 16, kernel=5)
    graph.pool(2, 2)
    graph.flatten()
    for inputs, outputs in ((400, 120), (120, 84)):
        graph.linear(inputs, outputs, relu=True)
    graph.linear(84, 10, relu=False)
    return _publish("lenet", graph.to_onnx(_GREY), _GREY, workspace)


def trained_lenet(workspace: Path, repository: Path | None) -> Network:
    """Return the LeNet that `make demo` trains: ``lenet`` of ``repository``, else one like it.

    88,522 parameters once its batch norm is folded.
    """
    if repository is not None and (found := _find("lenet", _GREY, repository)) is not None:
        return found
    import torch  # noqa: PLC0415  # heavy, and only needed here

    from benchmarks.export_figures import with_random_statistics  # noqa: PLC0415
    from foldserve.export.graph.build import build_model  # noqa: PLC0415
    from foldserve.export.graph.trace import trace  # noqa: PLC0415
    from foldserve.training.models import create_model  # noqa: PLC0415

    torch.manual_seed(0)
    network = create_model("lenet", in_channels=1, class_count=10, height=28, width=28)
    with_random_statistics(network)
    metadata = ModelMetadata(tuple("0123456789"), (0.286,), (0.353,), _GREY)  # Fashion-MNIST's
    built = build_model(trace(network.eval(), _GREY.shape).model, metadata)
    return _publish("trained-lenet", built.content, _GREY, workspace)


def alexnet(workspace: Path, repository: Path | None) -> Network:
    """Return AlexNet (the one-tower variant, 61.1 million parameters) on 224x224 colour images."""
    graph = _Graph(seed=7)
    graph.conv(3, 64, kernel=11, stride=4, pad=2)
    graph.pool(3, 2)
    graph.conv(64, 192, kernel=5, pad=2)
    graph.pool(3, 2)
    for inputs, outputs in ((192, 384), (384, 256), (256, 256)):
        graph.conv(inputs, outputs, kernel=3, pad=1)
    graph.pool(3, 2)
    graph.flatten()
    for inputs, outputs in ((9216, 4096), (4096, 4096)):
        graph.linear(inputs, outputs, relu=True)
    graph.linear(4096, 1000, relu=False)
    image = ImageSpec("RGB", 224, 224, 256)
    if repository is not None and (found := _find("alexnet", image, repository)) is not None:
        return found
    return _publish("alexnet", graph.to_onnx(image), image, workspace)


def glance(workspace: Path) -> Network:
    """Return a network on 224x224 colour images that takes next to no time, where pictures are measured."""
    graph = _Graph(seed=3, step=8)
    graph.conv(3, 4, kernel=7, stride=7)
    graph.flatten()
    graph.linear(64, 10, relu=False)
    return _publish("glance", graph.to_onnx(COLOUR_224), COLOUR_224, workspace)


class _Graph:
    """A chain of nodes with He-initialised weights, which sees every ``step``-th pixel of the input."""

    def __init__(self, seed: int, step: int = 1) -> None:
        self._random = np.random.default_rng(seed)
        self._weights: list[Any] = [numpy_helper.from_array(np.array(255, np.float32), "scale")]
        self._last = "seen"
        self._nodes: list[Any] = [
            helper.make_node("Cast", [IMAGE], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels", "scale"], ["seen"]),
        ]
        self._class_count = 0
        if step > 1:
            numbers = {"starts": [0, 0], "ends": [1 << 30] * 2, "axes": [2, 3], "steps": [step] * 2}
            self._weights += [
                numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()
            ]
            self._nodes[0].input[0] = "thinned"
            self._nodes.insert(0, helper.make_node("Slice", [IMAGE, *numbers], ["thinned"]))

    def conv(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, pad: int = 0) -> None:
        """Add a convolution and a ReLU."""
        weights = self._add_weights((outputs, inputs, kernel, kernel), outputs)
        self._add("Conv", weights, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2)
        self._add("Relu")

    def pool(self, kernel: int, stride: int) -> None:
        """Add a max pooling."""
        self._add("MaxPool", kernel_shape=[kernel] * 2, strides=[stride] * 2)

    def flatten(self) -> None:
        """Turn feature maps into rows."""
        self._add("Flatten")

    def linear(self, inputs: int, outputs: int, *, relu: bool) -> None:
        """Add a fully connected layer; the one without ReLU is the last."""
        self._add("Gemm", self._add_weights((outputs, inputs), outputs), transB=1)
        self._class_count = outputs
        if relu:
            self._add("Relu")

    def to_onnx(self, image: ImageSpec) -> bytes:
        """Return the content of a model.onnx with its metadata inside."""
        self._nodes[-1].output[0] = LOGITS
        self._nodes.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1))
        rows = ("batch", self._class_count)
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", *image.shape])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, rows)
                for name in (LOGITS, PROBABILITIES)
            ],
            self._weights,
        )
        labels = tuple(f"class {index}" for index in range(self._class_count))
        metadata = ModelMetadata(labels, (0.0,) * image.channels, (1.0,) * image.channels, image)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, metadata.to_props())
        return bytes(model.SerializeToString())

    def _add(self, operator: str, weights: tuple[str, ...] = (), **attributes: Any) -> None:
        output = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, [self._last, *weights], [output], **attributes))
        self._last = output

    def _add_weights(self, shape: tuple[int, ...], outputs: int) -> tuple[str, str]:
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        names = (f"weight_{len(self._nodes)}", f"bias_{len(self._nodes)}")
        arrays = (
            self._random.standard_normal(shape, dtype=np.float32) * scale,
            self._random.standard_normal(outputs, dtype=np.float32) * np.float32(0.01),
        )
        self._weights += [
            numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)
        ]
        return names


def _find(name: str, image: ImageSpec, repository: Path) -> Network | None:
    """Return the newest version of a model in ``repository``, if there is one."""
    folder = repository / name
    if not folder.is_dir() or not (versions := list_versions(folder)):
        return None
    return Network(name, repository, folder / str(versions[-1]) / MODEL_FILE, image.shape)


def _publish(name: str, model: bytes, image: ImageSpec, workspace: Path) -> Network:
    """Publish ``model`` in a repository of its own under ``workspace``."""
    repository = workspace / f"{name}-only"
    images = Network(name, repository, repository, image.shape).images(_GOLDEN_COUNT)
    (logits,) = Session(model, device="cpu").run((LOGITS,), {IMAGE: images})
    # Only the speed of this network matters: ONNX Runtime's own logits stand for the reference too.
    tolerance = max_tolerance(logits, "fp32")
    golden = Golden(images, logits, logits, tolerance, tolerance, synthetic=True)
    version = publish_artifact(repository / name, model=model, golden=golden, manifest={"precision": "fp32"})
    return Network(name, repository, version / MODEL_FILE, image.shape)
