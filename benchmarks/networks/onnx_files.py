"""Exports the classifiers that the `onnx` wheel brings along, files of 2018 made by Caffe2, and judges them.

Their weights are constants (ConstantOfShape), which keeps the files small and makes all logits equal. So
each is exported as shipped, and once more with random weights in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from benchmarks.networks.attempt import VERIFY_COUNT, export
from benchmarks.networks.exported import node_by_node, published_logits
from benchmarks.networks.images import MEAN, STD, draw_images, normalised
from benchmarks.networks.judge import Judge
from foldserve.export.config import ExportConfig
from foldserve.export.sources.onnx.float64_graph import Float64Graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

STATISTICS = ("shipped", "random")
SIDE = 224
_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# The float64 reference takes seconds an image.
_JUDGE_COUNT = 2
_JUDGE_SEED = 77
_OPSET = 19
_CREDIBLE = 1e-3  # of the largest logit


def names() -> list[str]:
    """Return the networks' names: ``onnx/`` and the file's name."""
    return [f"onnx/{path.stem}" for path in sorted(_FOLDER.glob("light_*.onnx"))]


def attempt_file(name: str, statistics: str, folder: Path, tell: Callable[[dict[str, Any]], None]) -> None:
    """Export a file, with files in ``folder``, and ``tell`` all that is found out, piece by piece."""
    given = _FOLDER / f"{name.partition('/')[2]}.onnx"
    model = onnx.load(given)
    tell({"batch_norms": sum(node.op_type == "BatchNormalization" for node in model.graph.node)})
    if statistics == "random":
        give_random_weights(model)
        given = folder / given.name
        onnx.save(model, given)
    labels = folder / "labels.txt"
    labels.write_text("\n".join(f"class {index}" for index in range(_class_count(model))))
    tell({"step": "export"})
    config = ExportConfig(
        source=given,
        labels=labels,
        mean=MEAN,
        std=STD,
        repository=folder / "models",
        name="network",
        verify_images=VERIFY_COUNT,
    )
    content = export(config, tell)
    tell({"step": "judge"})
    if content is not None:
        judge = _make_judge(model)
        error = judge.error(published_logits(content, judge.images))
        tell({"pytorch_error": judge.pytorch_error, "largest_logit": judge.largest})
        tell({"outcome": judge.verdict(error), "error": error})


def give_random_weights(model: onnx.ModelProto) -> None:
    """Replace every ConstantOfShape by a random initializer, listed as an input as files of IR 3 have to."""
    random = np.random.default_rng(0)
    graph = model.graph
    shapes: dict[str, NDArray[Any]] = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    users: dict[str, tuple[onnx.NodeProto, int]] = {
        name: (node, at) for node in graph.node for at, name in enumerate(node.input)
    }
    constants = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in constants:
        shape = [int(side) for side in shapes[node.input[0]]]
        user, at = users[node.output[0]]
        values = _random_values(shape, user.op_type, at, random)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.input.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
        graph.node.remove(node)


def _random_values(
    shape: list[int], operator: str, at: int, random: np.random.Generator
) -> NDArray[np.float64]:
    if len(shape) > 1:
        return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    # Inputs of BatchNormalization: X, scale, bias, mean, variance. Scales of Mul and Add go through
    # Unsqueeze.
    if (operator, at) in (("BatchNormalization", 1), ("BatchNormalization", 4), ("Unsqueeze", 0)):
        return random.uniform(0.5, 1.5, shape)
    return random.normal(0, 0.1, shape)


def _class_count(model: onnx.ModelProto) -> int:
    return int(model.graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def _make_judge(model: onnx.ModelProto) -> Judge:
    """Compute what goes into the softmax: in float64 by ONNX's reference, in float32 node by node."""
    images = draw_images(_JUDGE_COUNT, SIDE, _JUDGE_SEED)
    answering = onnx.ModelProto()
    answering.CopyFrom(model)
    _answer_logits(answering)
    inputs = normalised(images)
    rounded = node_by_node(answering.SerializeToString(), inputs.astype(np.float32))
    # ONNX's evaluator alone computes some convolutions with groups wrongly, and others for minutes.
    # Its average pooling of opsets below 19 counts borders that it should not.
    upgraded = version_converter.convert_version(answering, _OPSET)
    graph = Float64Graph(upgraded.SerializeToString())
    name = _image_input(answering)
    parts = [graph.run({name: image[np.newaxis]}) for image in inputs]
    exact = np.concatenate(parts).reshape(len(images), -1)
    error = float(np.abs(rounded.reshape(exact.shape) - exact).max())
    if error > _CREDIBLE * float(np.abs(exact).max()):
        raise ValueError(f"float32 and float64 differ by {error:.2g}: one of them is not the network")
    return Judge(images, exact, error)


def _answer_logits(model: onnx.ModelProto) -> None:
    graph = model.graph
    last = graph.node[-1]
    if last.op_type == "Softmax":
        output = helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT, None)
        graph.node.remove(last)
        del graph.output[:]
        graph.output.append(output)


def _image_input(model: onnx.ModelProto) -> str:
    weights = {each.name for each in model.graph.initializer}
    (name,) = (each.name for each in model.graph.input if each.name not in weights)
    return str(name)
