"""Versions whose loading would never end, or would take all memory, made of a tiny sound one."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve.artifact.format import LOGITS, Golden
from foldserve.artifact.writer import publish_artifact
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from pathlib import Path


class EndlessNetwork(TinyNetwork):
    """TinyNetwork with nought times a loop's result added to its logits, and the loop ends never.

    ``of_input``: the loop begins with a number from the image, else with a constant.
    """

    def __init__(self, *, of_input: bool) -> None:
        super().__init__()
        self._of_input = of_input

    def to_onnx(self) -> bytes:
        """Return the content of a model.onnx."""
        constants = {"yes": np.bool_(True), "start": np.float32(0)}
        nodes = [helper.make_node("Loop", ["", "yes", "start"], ["added"], body=_endless_body())]
        if self._of_input:
            del constants["start"]
            nodes.insert(0, helper.make_node("ReduceSum", ["pixels"], ["start"], keepdims=0))
        return _with_added(super().to_onnx(), nodes, constants)


class HugeNetwork(TinyNetwork):
    """TinyNetwork with a constant of ``byte_count`` in the way."""

    def __init__(self, byte_count: int) -> None:
        super().__init__()
        self._byte_count = byte_count

    def to_onnx(self) -> bytes:
        """Return the content of a model.onnx."""
        one = numpy_helper.from_array(np.ones(1, np.float32))
        nodes = [
            helper.make_node("ConstantOfShape", ["shape"], ["huge"], value=one),
            helper.make_node("ReduceMax", ["huge"], ["added"], keepdims=0),
        ]
        return _with_added(super().to_onnx(), nodes, {"shape": np.array([self._byte_count // 4])})


class HeavyNetwork(TinyNetwork):
    """TinyNetwork with products of matrices in the way, of which each takes a second or more, and 64 MB."""

    def to_onnx(self) -> bytes:
        """Return the content of a model.onnx."""
        nodes = [helper.make_node("Expand", ["value", "shape"], ["product 0"])]
        for number in range(20):
            inputs = [f"product {number}", "product 0"]
            nodes.append(helper.make_node("MatMul", inputs, [f"product {number + 1}"]))
        nodes.append(helper.make_node("ReduceMax", ["product 20"], ["added"], keepdims=0))
        constants = {"value": np.full(1, 1 / 4000, np.float32), "shape": np.array([4000, 4000])}
        return _with_added(super().to_onnx(), nodes, constants)


def publish_unproven(network: TinyNetwork, model_folder: Path) -> Path:
    """Publish with golden pairs that nobody has run; return the version's folder."""
    images = network.random_images(4)
    logits = network.logits(images)
    golden = Golden(images, logits, logits, 1e-3, 1e-3, synthetic=True)
    return publish_artifact(model_folder, model=network.to_onnx(), golden=golden, manifest={})


def publish_bomb(model_folder: Path, *, count: int, count_there: int | None = None) -> Path:
    """Publish with ``count`` golden images of zeros, of which the archive has ``count_there`` (None: all)."""
    version = TinyNetwork().publish(model_folder)
    with np.load(version / "golden.npz") as arrays:
        pairs = dict(arrays)
    content = io.BytesIO()
    shape = (count, *pairs.pop("images").shape[1:])
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            zeros = bytes(64 * 1000)
            for _ in range((count if count_there is None else count_there) // 1000):
                member.write(zeros)
        for name, array in pairs.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    replace_file(version, "golden.npz", content.getvalue())
    return version


def replace_file(version: Path, name: str, content: bytes) -> None:
    """Exchange one of a version's files, and say in the manifest that it belongs there."""
    (version / name).write_bytes(content)
    manifest = json.loads((version / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (version / "manifest.json").write_text(json.dumps(manifest))


def _endless_body() -> onnx.GraphProto:
    def scalar(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [])

    nodes = [
        helper.make_node("Identity", ["goes_on"], ["goes_on_still"]),
        helper.make_node("Add", ["sum", "one"], ["next_sum"]),
    ]
    inputs = [scalar("count", TensorProto.INT64), scalar("goes_on", TensorProto.BOOL)]
    inputs.append(scalar("sum", TensorProto.FLOAT))
    outputs = [scalar("goes_on_still", TensorProto.BOOL), scalar("next_sum", TensorProto.FLOAT)]
    one = numpy_helper.from_array(np.asarray(np.float32(1)), "one")
    return helper.make_graph(nodes, "body", inputs, outputs, [one])


def _with_added(content: bytes, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    """Return a model with nought times "added", which ``nodes`` compute, added to the logits."""
    model = onnx.load_from_string(content)
    graph = model.graph
    (logits,) = [node for node in graph.node if LOGITS in node.output]
    logits.output[0] = "sound"
    constants = constants | {"nought": np.float32(0)}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    place = list(graph.node).index(logits) + 1
    nodes = [
        *nodes,
        helper.make_node("Mul", ["added", "nought"], ["nothing"]),
        helper.make_node("Add", ["sound", "nothing"], [LOGITS]),
    ]
    for offset, node in enumerate(nodes):
        graph.node.insert(place + offset, node)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
