"""`foldserve export model.onnx`: files made elsewhere are folded, proven and published."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foldserve.artifact.format import ModelMetadata, read_artifact
from foldserve.export import pipeline
from foldserve.export.config import ExportConfig
from foldserve.export.errors import FoldError, ParityError, SourceError
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.graph.weights_apart import Weights
from foldserve.export.pipeline import export_model
from foldserve.export.sources.load import load_source
from foldserve.export.sources.onnx import onnx_reference
from foldserve.export.sources.onnx.float64_graph import Float64Graph
from foldserve.export.sources.onnx.normalized_file import PreparedFile
from foldserve.export.sources.onnx.onnx_network import OnnxNetwork
from foldserve.export.verification import divergence
from foldserve.runtime.session import Session
from tests.support.server_process import ServerProcess, outputs_of
from tests.support.torch_networks import Classifier, Residual, randomised

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("a", "b", "c", "d")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIDE = 8


def small_graph(
    *,
    batch: int | str = "N",
    side: int | str = SIDE,
    end: str = "",
    opset: int = 18,
    training: bool = False,
    pixels: bool = False,
    more_nodes: tuple[onnx.NodeProto, ...] = (),
    more_outputs: tuple[str, ...] = (),
    seed: int = 1,
) -> onnx.ModelProto:
    """Convolution, batch norm, ReLU, mean over space, and a linear layer, as another tool may write them.

    With a fixed ``batch`` the flattening is a Reshape to that batch; some values have names of ours.
    """
    random = np.random.default_rng(seed)
    weights = {
        "conv.w": random.normal(size=(6, 3, 3, 3)),
        "bn.gamma": random.uniform(-1.5, 1.5, 6),
        "bn.beta": random.normal(size=6),
        "bn.mean": random.normal(size=6),
        "bn.var": random.uniform(0.3, 3, 6),
        "fc.w": random.normal(size=(6 * 4, 4)),
        "image": random.normal(size=4),  # the bias, under a name that our own input needs
    }
    shape = [batch if isinstance(batch, int) else -1, 6 * 4]
    initializers = [
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    ]
    initializers.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    norm = {"training_mode": 1} if training else {}
    nodes = [helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT)] if pixels else []
    nodes += [
        helper.make_node("Conv", ["floats" if pixels else "x", "conv.w"], ["probabilities"], pads=[1] * 4),
        helper.make_node(
            "BatchNormalization", ["probabilities", "bn.gamma", "bn.beta", "bn.mean", "bn.var"], ["y"], **norm
        ),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Identity", ["r"], ["i"]),
        helper.make_node("MaxPool", ["i"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["p", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w", "image"], ["scores"]),
    ]
    if end:
        nodes.append(helper.make_node(end, ["scores"], ["last"]))
    last = "last" if end else "scores"
    graph = helper.make_graph(
        [*nodes, *more_nodes],
        "theirs",
        [
            helper.make_tensor_value_info(
                "x", TensorProto.UINT8 if pixels else TensorProto.FLOAT, [batch, 3, side, side]
            )
        ],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None, 4])]
        + [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in more_outputs],
        initializers,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="by hand"
    )


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n")
    return path


def config(path: Path, **settings: Any) -> ExportConfig:
    given: dict[str, Any] = {
        "source": path,
        "labels": path.parent / "labels.txt",
        "mean": MEAN,
        "std": STD,
        "repository": path.parent / "models",
        "name": "adopted",
    }
    return ExportConfig(**{key: value for key, value in (given | settings).items() if value is not None})


def save(model_proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "theirs.onnx"
    path.write_bytes(model_proto.SerializeToString())
    return path


def given_logits(
    path: Path, images: np.ndarray, output: str = "scores", batch: int | None = None
) -> np.ndarray:
    """The file's own answers, by no code of the exporter but the session."""
    floats = (images.astype(np.float32) / 255 - np.float32(MEAN).reshape(3, 1, 1)) / np.float32(STD).reshape(
        3, 1, 1
    )
    session = Session(path.read_bytes(), device="cpu", intra_op_threads=1, optimised=False)
    step = batch or len(images)
    return np.concatenate(
        [session.run([output], {"x": floats[at : at + step]})[0] for at in range(0, len(images), step)]
    )


def adopted_logits(folder: Path, images: np.ndarray) -> np.ndarray:
    session = Session(read_artifact(folder).model, device="cpu", intra_op_threads=1)
    return session.run(["logits"], {"image": images})[0]


IMAGES = np.random.default_rng(9).integers(0, 256, (32, 3, SIDE, SIDE), dtype=np.uint8)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="any batch"),
        pytest.param({"batch": 1}, id="one image only"),
        pytest.param({"batch": 5}, id="five images only"),
        pytest.param({"opset": 13}, id="older opset"),
        pytest.param({"opset": 21}, id="newer opset"),
        pytest.param({"side": "S"}, id="open size"),
    ],
)
def test_file_is_folded_and_keeps_its_logits_at_any_batch_size(settings, tmp_path, labels):
    path = save(small_graph(**settings), tmp_path)
    export_model(config(path, input="3x8x8" if "side" in settings else None))
    version = tmp_path / "models/adopted/1"
    batch = settings.get("batch")
    expected = given_logits(path, IMAGES[:30], batch=batch if isinstance(batch, int) else None)
    for count in (1, 2, 7, 30):
        assert np.abs(adopted_logits(version, IMAGES[:count]) - expected[:count]).max() < 5e-5
    model_proto = onnx.load(version / "model.onnx")
    assert not {"BatchNormalization", "Identity"} & {node.op_type for node in model_proto.graph.node}
    assert model_proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["source"]["onnx_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["source"]["producer"] == "by hand"
    assert manifest["source"]["opset"] == settings.get("opset", 18)
    assert [fold["action"] for fold in manifest["folding"]] == ["folded", "folded"]
    assert manifest["parity"]["referee"] == "float64"
    assert manifest["golden"]["synthetic"] is True


def test_golden_logits_are_the_given_files_own(tmp_path, labels):
    path = save(small_graph(), tmp_path)
    export_model(config(path))
    golden = read_artifact(tmp_path / "models/adopted/1").golden
    assert np.array_equal(golden.reference_logits, given_logits(path, golden.images))


@pytest.mark.parametrize("weight", ["conv.w", "bn.var", "image"])
def test_one_changed_weight_publishes_nothing(weight, tmp_path, labels, monkeypatch):
    """The twin: what is folded is not quite the file that answers."""
    path = save(small_graph(), tmp_path)
    sound_graph = OnnxNetwork.to_graph

    def damaged_graph(network):
        model_proto = onnx.load_from_string(network.file.prepared.file.content)
        names = {"image": "image.given"}
        (tensor,) = (
            entry for entry in model_proto.graph.initializer if entry.name == names.get(weight, weight)
        )
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[0] += 0.05
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        damaged_file = dataclasses.replace(
            network.file,
            prepared=PreparedFile(model_proto, Weights(), ModelFile(model_proto.SerializeToString())),
        )
        return sound_graph(OnnxNetwork(damaged_file))

    monkeypatch.setattr(OnnxNetwork, "to_graph", damaged_graph)
    with pytest.raises(ParityError, match="differ by up to"):
        export_model(config(path))
    assert not list(tmp_path.glob("models/adopted/*/manifest.json"))


@pytest.mark.parametrize("values_bytes", [None, 1], ids=["together", "one value at a time"])
@pytest.mark.parametrize("batch", ["N", 1, 5])
def test_the_first_layer_to_differ_is_named(tmp_path, labels, monkeypatch, batch, values_bytes):
    path = save(small_graph(batch=batch), tmp_path)
    recorders = []
    sound_build, sound_recorder = pipeline.build_model, OnnxNetwork.layer_recorder

    def damaging_build(model, metadata):
        built = sound_build(model, metadata)
        model_proto = onnx.load_from_string(built.content)
        (tensor,) = (entry for entry in model_proto.graph.initializer if entry.name == "conv.w")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), "conv.w"))
        return dataclasses.replace(built, file=ModelFile(model_proto.SerializeToString()))

    def noted_recorder(network):
        recorders.append(sound_recorder(network))
        return recorders[-1]

    monkeypatch.setattr(pipeline, "build_model", damaging_build)
    monkeypatch.setattr(OnnxNetwork, "layer_recorder", noted_recorder)
    if values_bytes:
        monkeypatch.setattr(divergence, "_VALUES_BYTES", values_bytes)
    with pytest.raises(ParityError, match=r"the first layer to differ is Conv \(value 'y'\)"):
        export_model(config(path))
    (recorder,) = recorders
    image = np.zeros((1, 3, SIDE, SIDE), np.uint8)
    sizes = recorder.image_bytes(image)
    values = recorder.recording(list(sizes))(image)
    assert {name: value.nbytes for name, value in values.items()} == sizes


@pytest.mark.parametrize("large_bytes", [1, 10**9])
def test_a_large_file_is_closed_while_float64_is_computed(tmp_path, labels, monkeypatch, large_bytes):
    """ONNX Runtime holds all its weights, beside those of the published file and of the float64 network."""
    references, open_ones = [], []
    true_reference, true_run = OnnxNetwork.reference, Float64Graph.run

    def noted_reference(network):
        references.append(true_reference(network))
        return references[-1]

    def noted_run(graph, feeds):
        open_ones.extend(reference._session is not None for reference in references)
        return true_run(graph, feeds)

    monkeypatch.setattr(onnx_reference, "LARGE_BYTES", large_bytes)
    monkeypatch.setattr(OnnxNetwork, "reference", noted_reference)
    monkeypatch.setattr(Float64Graph, "run", noted_run)
    path = save(small_graph(), tmp_path)
    export_model(config(path))
    assert set(open_ones) == {large_bytes > 1}
    golden = read_artifact(tmp_path / "models/adopted/1").golden
    assert np.array_equal(golden.reference_logits, given_logits(path, golden.images))


def test_final_softmax_of_a_file_is_removed(tmp_path, labels, capsys):
    path = save(small_graph(end="Softmax"), tmp_path)
    export_model(config(path))
    assert "removed the softmax at the end: its input scores is used as the logits" in capsys.readouterr().out
    session = Session(read_artifact(tmp_path / "models/adopted/1").model, device="cpu", intra_op_threads=1)
    probabilities = session.run(["probabilities"], {"image": IMAGES})[0]
    assert np.abs(probabilities - given_logits(path, IMAGES, "last")).max() < 1e-5


def test_a_file_that_takes_pixels_is_given_them_as_they_are(tmp_path, labels):
    path = save(small_graph(pixels=True), tmp_path)
    export_model(config(path, mean=None, std=None))
    session = Session(path.read_bytes(), device="cpu", intra_op_threads=1)
    expected = session.run(["scores"], {"x": IMAGES})[0]
    # Logits are some hundreds here, for the network sees 0 to 255.
    actual = adopted_logits(tmp_path / "models/adopted/1", IMAGES)
    assert np.abs(actual - expected).max() < 1e-6 * np.abs(expected).max() * 5
    with pytest.raises(SourceError, match="--pixel-range cannot be used with a file of UINT8"):
        load_source(config(path))


def test_our_own_file_is_imported_with_its_labels_and_equal_logits(tmp_path, labels):
    path = save(small_graph(), tmp_path)
    export_model(config(path))
    first = tmp_path / "models/adopted/1"
    for _ in range(2):
        export_model(ExportConfig(source=first, repository=tmp_path / "models", skip_same=False))
    second, third = tmp_path / "models/adopted/2", tmp_path / "models/adopted/3"
    assert np.array_equal(adopted_logits(first, IMAGES), adopted_logits(second, IMAGES))
    assert read_artifact(second).model == read_artifact(third).model
    before, after = (
        ModelMetadata.from_props(Session(read_artifact(folder).model, device="cpu").props)
        for folder in (first, second)
    )
    assert (after.labels, after.mean, after.std, after.image) == (LABELS, MEAN, STD, before.image)


def test_external_data_is_taken_in(tmp_path, labels):
    path = tmp_path / "theirs.onnx"
    onnx.save(small_graph(), path, save_as_external_data=True, location="theirs.data", size_threshold=0)
    export_model(config(path))
    plain = save(small_graph(), tmp_path)
    assert (
        np.abs(adopted_logits(tmp_path / "models/adopted/1", IMAGES) - given_logits(plain, IMAGES)).max()
        < 5e-5
    )
    manifest = json.loads((tmp_path / "models/adopted/1/manifest.json").read_text())
    assert list(manifest["source"]["onnx_external_data_sha256"]) == ["theirs.data"]
    onnx.save(small_graph(), path, save_as_external_data=True, location="theirs.data", size_threshold=0)
    (tmp_path / "theirs.data").unlink()
    with pytest.raises(SourceError, match=r"stores its weights in theirs\.data beside it"):
        load_source(config(path))


def node(operation: str, *inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operation, list(inputs), [output], **attributes)


REFUSED = {
    "two outputs": ({"more_outputs": ("r",)}, SourceError, "has 2 outputs: scores, r; name the one"),
    "sigmoid": ({"end": "Sigmoid"}, SourceError, "the output of a Sigmoid, not logits"),
    "training": ({"training": True, "opset": 15}, FoldError, "is in training mode"),
    "five channels": ({}, SourceError, "--input 5x8x8"),
    "open size": ({"side": "S"}, SourceError, "does not fix the shape of its image"),
    "random": (
        {
            "more_nodes": (
                node("RandomNormalLike", "scores", output="noise"),
                node("Add", "scores", "noise", output="noisy"),
            )
        },
        SourceError,
        "something in it is random",
    ),
    "mixes images": (
        {
            "more_nodes": (
                node("ReduceMean", "scores", output="mean", keepdims=1),
                node("Sub", "scores", "mean", output="centred"),
            )
        },
        SourceError,
        "cannot be made to take 1 images at once: its logits differ",
    ),
    "a map": ({}, SourceError, r"the file's r is float32 \[32, 6, 8, 8\]"),
    "no such output": ({}, SourceError, "--output nowhere: the file computes no such tensor"),
}
ASKED = {
    "random": {"output": "noisy"},
    "mixes images": {"output": "centred"},
    "a map": {"output": "r"},
    "no such output": {"output": "nowhere"},
    "five channels": {"input": "5x8x8"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_served_are_refused(case, tmp_path, labels):
    settings, error, message = REFUSED[case]
    if case == "training":
        model_proto = small_graph(**settings)
        norm = next(entry for entry in model_proto.graph.node if entry.op_type == "BatchNormalization")
        norm.output.extend(["running_mean", "running_var"])
    else:
        model_proto = small_graph(**settings)
    path = save(model_proto, tmp_path)
    with pytest.raises(error, match=message) as raised:
        export_model(config(path, **ASKED.get(case, {})))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "computes nothing"),
        (b"not a model", "not an ONNX model"),
        (None, "cut short|not valid|computes nothing"),
    ],
    ids=["empty", "text", "cut"],
)
def test_files_that_are_not_onnx_models_are_refused(content, message, tmp_path, labels):
    path = tmp_path / "theirs.onnx"
    whole = small_graph().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(SourceError, match=message):
        load_source(config(path))


def test_inputs_that_are_not_an_image_are_named(tmp_path, labels):
    model_proto = small_graph()
    model_proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ["N", 7]))
    with pytest.raises(SourceError, match=r"takes x FLOAT \[N, 3, 8, 8\], mask INT64 \[N, 7\]; expected one"):
        load_source(config(save(model_proto, tmp_path)))


def test_labels_are_asked_for_and_counted(tmp_path, labels):
    path = save(small_graph(), tmp_path)
    with pytest.raises(SourceError, match=r"--labels FILE is needed .* outputs 4 classes"):
        load_source(config(path, labels=None))
    labels.write_text("a\nb\n")
    with pytest.raises(SourceError, match="has 2 names, but the network outputs 4 classes"):
        load_source(config(path))


def test_a_fixed_batch_that_cannot_be_freed_is_refused(tmp_path, labels):
    """Through a tensor without a batch's side: nothing tells which of its numbers belong to which image."""
    there_and_back = (
        node("Reshape", "scores", "flat shape", output="vector"),
        node("Reshape", "vector", "back shape", output="tail"),
    )
    model_proto = small_graph(batch=1, more_nodes=there_and_back)
    for name, shape in (("flat shape", [4]), ("back shape", [1, 4])):
        model_proto.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    with pytest.raises(
        SourceError, match=r"take 2 images at once: .*symbolic batch size instead of 1"
    ) as raised:
        load_source(config(save(model_proto, tmp_path), output="tail"))
    assert "\n" not in str(raised.value)


def test_output_without_one_row_per_image_is_refused(tmp_path, labels):
    model_proto = small_graph(batch=1, more_nodes=(node("Expand", "scores", "three", output="tail"),))
    model_proto.graph.initializer.append(numpy_helper.from_array(np.array([3, 4], np.int64), "three"))
    with pytest.raises(SourceError, match=r"tail is float32 \[96, 4\] for 32 images"):
        load_source(config(save(model_proto, tmp_path), output="tail"))


def quantised_weights(opset: int = 18) -> onnx.ModelProto:
    """The convolution's weights as int8 with a scale a channel, the way quantised files carry them."""
    model_proto = small_graph(opset=opset)
    (weight,) = (entry for entry in model_proto.graph.initializer if entry.name == "conv.w")
    array = numpy_helper.to_array(weight)
    scale = np.abs(array).max(axis=(1, 2, 3)) / np.float32(127)
    integers = np.round(array / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    weight.CopyFrom(numpy_helper.from_array(integers, "conv.q"))
    model_proto.graph.initializer.append(numpy_helper.from_array(scale, "conv.scale"))
    model_proto.graph.node.insert(
        0, node("DequantizeLinear", "conv.q", "conv.scale", output="conv.w", axis=0)
    )
    return model_proto


def test_file_with_quantised_weights_is_verified_without_float64(tmp_path, labels, capsys):
    """The float64 evaluator lacks the operation; the file is proven against itself alone, which is said."""
    path = save(quantised_weights(), tmp_path)
    export_model(config(path))
    assert "no float64 reference" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "models/adopted/1/manifest.json").read_text())
    assert manifest["parity"]["referee"].startswith("none")
    assert manifest["parity"]["comparisons"][0]["max_abs_err_float64"] is None
    assert (
        np.abs(adopted_logits(tmp_path / "models/adopted/1", IMAGES) - given_logits(path, IMAGES)).max()
        < 5e-5
    )


def torch_file(folder: Path, *, dynamo: bool) -> Path:
    """A residual network with batch norm in the file, by PyTorch's new exporter or its old one."""
    torch.manual_seed(2)
    network = randomised(Classifier(Residual(), 6))
    path = folder / "theirs.onnx"
    example = torch.zeros(2, 3, SIDE, SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                network,
                (example,),
                path,
                dynamo=True,
                optimize=False,
                external_data=False,
                verbose=False,
                input_names=["x"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            )
        else:
            torch.onnx.export(
                network,
                (example[:1],),
                path,
                dynamo=False,
                opset_version=11,
                input_names=["x"],
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )
    assert "BatchNormalization" in {entry.op_type for entry in onnx.load(path).graph.node}
    torch.save(network, folder / "network.pt")
    return path


@pytest.mark.parametrize("dynamo", [True, False], ids=["new exporter", "old exporter, one image"])
def test_file_exported_by_pytorch_is_imported_and_served(dynamo, tmp_path, labels):
    """End to end: the served answers are those of the very PyTorch network, which the exporter never saw."""
    path = torch_file(tmp_path, dynamo=dynamo)
    export_model(config(path))
    manifest = json.loads((tmp_path / "models/adopted/1/manifest.json").read_text())
    assert [fold["action"] for fold in manifest["folding"]].count("folded") >= 3
    network: nn.Module = torch.load(tmp_path / "network.pt", weights_only=False)
    floats = (torch.from_numpy(IMAGES) / 255 - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(
        STD
    ).reshape(3, 1, 1)
    with torch.no_grad():
        expected = network(floats).numpy()
    with ServerProcess(tmp_path / "models", tmp_path / "server") as server:
        answers = outputs_of(server.infer(IMAGES, "adopted"))
    assert np.abs(answers["logits"] - expected).max() < 5e-5
