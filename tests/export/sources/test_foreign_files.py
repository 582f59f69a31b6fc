"""Old files, channels last, BGR and pixels from 0 to 255: published with the given file's own logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from foldserve.artifact.format import read_artifact
from foldserve.export.config import ExportConfig
from foldserve.export.errors import ParityError, SourceError
from foldserve.export.graph import channel_order
from foldserve.export.pipeline import export_model
from foldserve.export.sources import torch_network
from foldserve.export.sources.load import load_source
from foldserve.export.sources.onnx import prepare_graph
from foldserve.runtime.session import Session
from tests.support.own_project import make_project, trained_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SIDE, CLASSES = 12, 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = np.random.default_rng(5).integers(0, 256, (5, 3, SIDE, SIDE), dtype=np.uint8)


def weights() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    drawn = {
        "w": random.normal(size=(8, 3, 3, 3)) * 0.3,
        "b": random.normal(size=8),
        "gamma": random.uniform(0.5, 1.5, 8),
        "beta": random.normal(size=8),
        "mean": random.normal(size=8),
        "var": random.uniform(0.5, 2, 8),
        "fc": random.normal(size=(8, CLASSES)),
        "last": random.normal(size=(CLASSES, 8, 1, 1)),
    }
    return {name: value.astype(np.float32) for name, value in drawn.items()}


def save(
    path: Path,
    end: list[onnx.NodeProto],
    *,
    shape: tuple[int | str | None, ...] = ("N", 3, SIDE, SIDE),
    start: tuple[onnx.NodeProto, ...] = (),
    first: str = "image",
    constants: dict[str, NDArray[Any]] | None = None,
    opset: int = 13,
    ir_version: int = 8,
    listed: bool = False,
    made: tuple[str, ...] = (),
) -> Path:
    """Write a convolution, batch norm, ReLU and mean over the pixels, between ``start`` and ``end``.

    Args:
        listed: whether weights are listed as inputs, as up to IR 3.
        made: weights that nodes of the graph make of constants, as in the models of the ``onnx`` wheel.
    """
    body = [
        helper.make_node("Conv", [first, "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["p"]),
    ]
    nodes = [*start, *body, *end]
    used = {name for node in nodes for name in node.input}
    arrays = {name: value for name, value in (weights() | (constants or {})).items() if name in used}
    for name in made:
        value = arrays.pop(name)
        arrays[f"{name}.shape"] = np.array(value.shape, np.int64)
        number = numpy_helper.from_array(np.array([0.3], np.float32))
        nodes.insert(0, helper.make_node("ConstantOfShape", [f"{name}.shape"], [name], value=number))
    tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    if listed:
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in tensors]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (4 if "last" in used else 2))
    graph = helper.make_graph(nodes, "theirs", inputs, [output], tensors)
    model_proto = helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)]
    )
    path.write_bytes(model_proto.SerializeToString())
    return path


def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


LINEAR = [node("Flatten", ["p"], "q"), node("MatMul", ["q", "fc"], "y")]
FIXED_RESHAPE = [node("Reshape", ["p", "shape"], "q"), node("MatMul", ["q", "fc"], "y")]


def config(path: Path, **settings: Any) -> ExportConfig:
    labels = path.parent / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    given: dict[str, Any] = {
        "source": path,
        "labels": labels,
        "mean": MEAN,
        "std": STD,
        "repository": path.parent / "models",
        "name": "theirs",
        "verify_images": 32,
    }
    return ExportConfig(**{key: value for key, value in (given | settings).items() if value is not None})


def published(folder: Path) -> onnx.ModelProto:
    return onnx.load_from_string(read_artifact(folder / "models/theirs/1").model)


def operations(model_proto: onnx.ModelProto) -> list[str]:
    return [each.op_type for each in model_proto.graph.node]


def check_logits(path: Path, feed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> None:
    """Compare the published file, given pixels, with that at ``path``, given what ``feed`` makes of them."""
    given = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    session = Session(published(path.parent).SerializeToString(), device="cpu")
    expected = np.concatenate(
        [
            given.run(["y"], {"image": feed(IMAGES[at : at + 1])})[0].reshape(1, -1)
            for at in range(len(IMAGES))
        ]
    )
    actual = session.run(["logits"], {"image": IMAGES})[0]
    assert expected.shape == actual.shape == (len(IMAGES), CLASSES)
    assert np.abs(actual - expected).max() <= 2e-5 * np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0.01  # the images are told apart


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean, std = (np.float32(numbers).reshape(3, 1, 1) for numbers in (MEAN, STD))
    return (images.astype(np.float32) / 255 - mean) / std


def channels_last(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(normalised(images).transpose(0, 2, 3, 1))


SHAPE = {"shape": np.array([1, -1], np.int64)}
OLD: dict[str, dict[str, Any]] = {
    "IR 3, opset 8, one image": {
        "end": FIXED_RESHAPE,
        "shape": (1, 3, SIDE, SIDE),
        "constants": SHAPE,
        "opset": 8,
        "ir_version": 3,
        "listed": True,
    },
    "IR 3, weights made by nodes": {
        "end": FIXED_RESHAPE,
        "shape": (1, 3, SIDE, SIDE),
        "constants": SHAPE,
        "opset": 9,
        "ir_version": 3,
        "listed": True,
        "made": ("gamma", "b"),
    },
    "logits [N, K, 1, 1]": {"end": [node("Conv", ["p", "last"], "y")]},
    "logits [N, K, 1, 1], one image": {
        "end": [node("Conv", ["p", "last"], "y")],
        "shape": (1, 3, SIDE, SIDE),
        "opset": 9,
        "ir_version": 3,
        "listed": True,
    },
    "softmax of [N, K, 1, 1]": {
        "end": [node("Conv", ["p", "last"], "z"), node("Softmax", ["z"], "y", axis=1)],
        "opset": 11,
    },
    "a batch of -1": {"end": LINEAR, "shape": (-1, 3, SIDE, SIDE)},
    "a batch and sides of -1": {"end": LINEAR, "shape": (-1, 3, -1, -1)},
    "LRN and Dropout": {
        "end": [
            node("LRN", ["p"], "n", size=5, alpha=0.5, beta=0.75, bias=2.0),
            node("Dropout", ["n"], "o", ratio=0.5),
            node("Flatten", ["o"], "q"),
            node("MatMul", ["q", "fc"], "y"),
        ],
        "opset": 9,
    },
}


@pytest.mark.parametrize("case", list(OLD))
def test_old_files_are_published_with_their_logits(case, tmp_path, capsys):
    path = save(tmp_path / "theirs.onnx", **OLD[case])
    export_model(config(path, input=f"3x{SIDE}x{SIDE}"))
    if "softmax" in case:  # the published logits are what its softmax is of
        path = save(tmp_path / "theirs.onnx", [node("Conv", ["p", "last"], "y")])
    check_logits(path, normalised)
    assert "BatchNormalization" not in operations(published(tmp_path))
    assert "no float64 reference" not in capsys.readouterr().out
    outputs = published(tmp_path).graph.output
    assert [len(each.type.tensor_type.shape.dim) for each in outputs] == [2, 2]


def test_a_file_that_mixes_its_images_is_still_refused(tmp_path):
    """The twin of the wider tolerance for other batch sizes: the mean over all images of a batch."""
    mixing = [node("ReduceMean", ["p"], "m", axes=[0], keepdims=1), node("Sub", ["p", "m"], "s")]
    end = [*mixing, node("Flatten", ["s"], "q"), node("MatMul", ["q", "fc"], "y")]
    path = save(tmp_path / "theirs.onnx", end, shape=(1, 3, SIDE, SIDE))
    with pytest.raises(SourceError, match="cannot be made to take 2 images"):
        load_source(config(path))


TRANSPOSED = (node("Transpose", ["image"], "t", perm=[0, 3, 1, 2]),)
PER_CHANNEL = {"m": np.float32([0.1, 0.2, 0.3]), "s": np.float32([2, 3, 4]), "one": np.float32(0.5)}
LAST: dict[str, dict[str, Any]] = {
    "transposed at once": {"start": TRANSPOSED},
    "behind arithmetic per channel": {
        "start": (
            node("Sub", ["image", "m"], "a"),
            node("Mul", ["s", "a"], "h"),
            node("Add", ["h", "one"], "i"),
            node("Relu", ["i"], "j"),
            node("Transpose", ["j"], "t", perm=[0, 3, 1, 2]),
        ),
        "constants": PER_CHANNEL,
    },
    "behind padding": {
        "start": (
            node("Pad", ["image", "pads"], "a"),
            node("Transpose", ["a"], "t", perm=[0, 3, 1, 2]),
        ),
        "constants": {"pads": np.array([0, 1, 2, 0, 0, 3, 4, 0], np.int64)},
    },
    "open sides": {"start": TRANSPOSED, "shape": ("N", "H", "W", 3)},
    "one image": {
        "start": TRANSPOSED,
        "shape": (1, SIDE, SIDE, 3),
        "end": FIXED_RESHAPE,
        "constants": SHAPE,
    },
}


@pytest.mark.parametrize("case", list(LAST))
def test_channels_last_are_taken_by_a_transposition_that_cancels(case, tmp_path, capsys):
    settings = {"shape": ("N", SIDE, SIDE, 3), "end": LINEAR, "first": "t"} | LAST[case]
    path = save(tmp_path / "theirs.onnx", **settings)
    export_model(config(path, input=f"3x{SIDE}x{SIDE}"))
    check_logits(path, channels_last)
    assert "Transpose" not in operations(published(tmp_path))
    assert "[N, H, W, C]" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "models/theirs/1/manifest.json").read_bytes())
    assert manifest["source"]["input_layout"] == "NHWC"


@pytest.mark.parametrize(
    "start",
    [
        (node("Transpose", ["image"], "t", perm=[0, 3, 2, 1]),),  # swaps height and width too
        (
            node("Mul", ["image", "columns"], "a"),
            node("Transpose", ["a"], "t", perm=[0, 3, 1, 2]),
        ),
        (
            node("Transpose", ["image"], "a", perm=[0, 3, 1, 2]),
            node("Transpose", ["image"], "s", perm=[0, 3, 2, 1]),
            node("Add", ["a", "s"], "t"),
        ),
    ],
    ids=["another transposition", "a constant per column", "two readers"],
)
def test_a_transposition_that_does_not_cancel_stays_exact(start, tmp_path):
    """The twin: cancelled or moved without regard to its order, the image would be turned."""
    columns = np.linspace(0, 2, SIDE, dtype=np.float32).reshape(1, SIDE, 1)
    path = save(
        tmp_path / "theirs.onnx",
        LINEAR,
        shape=("N", SIDE, SIDE, 3),
        start=start,
        first="t",
        constants={"columns": columns},
    )
    export_model(config(path))
    check_logits(path, channels_last)


BGR_MEAN = (103.939, 116.779, 123.68)


def as_caffe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images[:, ::-1].astype(np.float32) - np.float32(BGR_MEAN).reshape(3, 1, 1)


def test_caffes_preprocessing_is_in_the_graph_and_recorded(tmp_path, capsys):
    path = save(tmp_path / "theirs.onnx", LINEAR)
    settings = {"mean": BGR_MEAN, "std": None, "pixel_range": "0-255", "channel_order": "bgr"}
    export_model(config(path, **settings))
    check_logits(path, as_caffe)
    model_proto = published(tmp_path)
    assert "Gather" not in operations(model_proto)
    printed = capsys.readouterr().out
    assert "channel order: folded, into w" in printed
    assert "warning: --" not in printed
    props = {entry.key: entry.value for entry in model_proto.metadata_props}
    assert (props["foldserve.channel_order"], props["foldserve.network_channel_order"]) == ("RGB", "BGR")
    mean, std = (json.loads(props[f"foldserve.{name}"]) for name in ("mean", "std"))
    assert np.allclose(np.array(mean) * 255, BGR_MEAN[::-1])
    assert np.allclose(np.array(std) * 255, 1)
    again = load_source(config(tmp_path / "models/theirs/1/model.onnx", mean=None, std=None))
    assert again.metadata.network_channel_order == "BGR"


def test_bgr_goes_with_channels_last(tmp_path):
    path = save(tmp_path / "theirs.onnx", LINEAR, shape=("N", SIDE, SIDE, 3), start=TRANSPOSED, first="t")
    export_model(config(path, channel_order="bgr", mean=MEAN[::-1], std=STD[::-1]))
    check_logits(path, lambda images: np.ascontiguousarray(channels_last(images)[..., ::-1]))
    assert not {"Gather", "Transpose"} & set(operations(published(tmp_path)))


def test_an_order_that_cannot_be_folded_stays_in_the_graph(tmp_path, capsys):
    start = (node("Relu", ["image"], "t"),)
    path = save(tmp_path / "theirs.onnx", LINEAR, start=start, first="t")
    export_model(config(path, channel_order="bgr", mean=MEAN[::-1], std=STD[::-1]))
    check_logits(path, lambda images: np.ascontiguousarray(normalised(images)[:, ::-1]))
    assert "Gather" in operations(published(tmp_path))
    assert "channel order: rewritten, Relu (t) behind it is not a convolution" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["prepared", "folded"])
def test_a_reversal_left_out_of_a_file_is_found(where, tmp_path, monkeypatch):
    """The twins: the graph without it, and the fold without putting the weights in order."""
    if where == "prepared":
        monkeypatch.setattr(prepare_graph, "reverse_input_channels", lambda _: None)
    else:
        monkeypatch.setattr(channel_order, "_into_next", lambda *_: "nothing")
    path = save(tmp_path / "theirs.onnx", LINEAR)
    with pytest.raises((SourceError, ParityError), match="differ"):
        export_model(config(path, channel_order="bgr"))
    assert not (tmp_path / "models/theirs").exists()


class TestOwnNetwork:
    @pytest.fixture(autouse=True)
    def project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        yield from make_project(tmp_path, monkeypatch)

    def config(self, folder: Path, **settings: Any) -> ExportConfig:
        given: dict[str, Any] = {
            "arch": "own_networks:net",
            "weights": folder / "weights.pt",
            "input": "3x16x16",
            "labels": folder / "labels.txt",
            "mean": BGR_MEAN,
            "pixel_range": "0-255",
            "channel_order": "bgr",
            "repository": folder / "models",
            "name": "theirs",
            "verify_images": 32,
        }
        return ExportConfig(**{key: value for key, value in (given | settings).items() if value is not None})

    def test_bgr_of_0_to_255_is_published(self, tmp_path, capsys):
        export_model(self.config(tmp_path))
        network = load_source(self.config(tmp_path)).network.module.network
        network.load_state_dict(trained_weights())
        images = np.random.default_rng(5).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
        with torch.no_grad():
            expected = network.eval()(torch.from_numpy(as_caffe(images))).numpy()
        session = Session(published(tmp_path).SerializeToString(), device="cpu")
        actual = session.run(["logits"], {"image": images})[0]
        assert np.abs(actual - expected).max() <= 2e-5 * np.abs(expected).max()
        assert "channel order: folded, into conv" in capsys.readouterr().out

    def test_a_reversal_left_out_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch_network, "reverse_input_channels", lambda _: None)
        with pytest.raises(ParityError, match="differ"):
            export_model(self.config(tmp_path))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"pixel_range": None}, r"--mean 103\.939,.*give --pixel-range 0-255"),
            ({"arch": "own_networks:net", "input": "1x16x16", "mean": (1.0,)}, "the image has one channel"),
        ],
    )
    def test_settings_that_contradict_themselves_are_refused(self, settings, message, tmp_path):
        with pytest.raises(SourceError, match=message):
            load_source(self.config(tmp_path, **settings))

    def test_a_mean_of_another_range_causes_a_warning(self, tmp_path):
        source = load_source(self.config(tmp_path, mean=(0.4, 0.5, 0.6)))
        assert any("next to nothing for pixels from 0 to 255" in remark for remark in source.remarks)


def test_order_and_range_are_refused_where_the_file_has_its_own(tmp_path):
    path = save(tmp_path / "theirs.onnx", LINEAR)
    export_model(config(path))
    with pytest.raises(SourceError, match="--channel-order cannot be used with a file that foldserve export"):
        load_source(config(tmp_path / "models/theirs/1", mean=None, std=None, channel_order="bgr"))


ONE_LOGIT = [node("Flatten", ["p"], "q"), node("MatMul", ["q", "fc1"], "z")]
ONE_WEIGHT = {"fc1": np.random.default_rng(3).normal(size=(8, 1)).astype(np.float32) * 8}
BINARY = {
    "a sigmoid": [*ONE_LOGIT, node("Sigmoid", ["z"], "y")],
    "a sigmoid, reshaped": [*ONE_LOGIT, node("Sigmoid", ["z"], "s"), node("Flatten", ["s"], "y")],
    "a logit": [*ONE_LOGIT, node("Identity", ["z"], "y")],
    "a logarithm": [*ONE_LOGIT, node("Sigmoid", ["z"], "s"), node("Log", ["s"], "y")],
}


@pytest.mark.parametrize("shape", [("N", 3, SIDE, SIDE), (1, 3, SIDE, SIDE)], ids=["any batch", "one image"])
@pytest.mark.parametrize("case", list(BINARY))
def test_one_output_is_the_second_of_two_labels(case, shape, tmp_path, capsys):
    path = save(tmp_path / "theirs.onnx", BINARY[case], constants=ONE_WEIGHT, shape=shape)
    settings = config(path)
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    export_model(settings)
    given = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    answers = [given.run(["y"], {"image": normalised(IMAGES[at : at + 1])})[0].item() for at in range(5)]
    yes = np.exp(answers) if case == "a logarithm" else np.array(answers)
    if case == "a logit":
        yes = 1 / (1 + np.exp(-np.array(answers)))
    session = Session(published(tmp_path).SerializeToString(), device="cpu")
    probabilities = session.run(["probabilities"], {"image": IMAGES})[0]
    assert np.abs(probabilities - np.stack([1 - yes, yes], axis=1)).max() < 1e-5
    assert "the logits are [0, logit]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("end", "labels"),
    [
        (BINARY["a sigmoid"], "a\n"),
        ([*LINEAR[:1], node("MatMul", ["q", "fc2"], "z"), node("Sigmoid", ["z"], "y")], "a\nb\n"),
    ],
    ids=["one label", "a sigmoid per class"],
)
def test_a_sigmoid_that_is_not_that_of_two_classes_is_refused(end, labels, tmp_path):
    constants = {**ONE_WEIGHT, "fc2": np.ones((8, 2), np.float32)}
    settings = config(save(tmp_path / "theirs.onnx", end, constants=constants))
    (tmp_path / "labels.txt").write_text(labels)
    with pytest.raises(SourceError, match=r"Sigmoid.*logits"):
        load_source(settings)


def test_a_softmax_of_one_output_is_no_logit_of_two_labels(tmp_path):
    """It is 1 for every image: what goes into it says nothing of the second label."""
    end = [*BINARY["a logit"][:-1], node("Softmax", ["z"], "y", axis=1)]
    settings = config(save(tmp_path / "theirs.onnx", end, constants=ONE_WEIGHT))
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    with pytest.raises(SourceError, match="one number per image"):
        load_source(settings)


@pytest.mark.parametrize("choice", ["Gather", "Slice"])
def test_the_probability_of_one_of_two_classes_is_no_logit(choice, tmp_path):
    columns = {"Gather": ["p2", "one"], "Slice": ["p2", "one", "two", "one"]}
    attributes = {"axis": 1} if choice == "Gather" else {}
    end = [
        *LINEAR[:1],
        node("MatMul", ["q", "small"], "z"),
        node("Softmax", ["z"], "p2", axis=1),
        node(choice, columns[choice], "y", **attributes),
    ]
    constants = {
        "small": np.random.default_rng(3).normal(size=(8, 2)).astype(np.float32) / 100,
        "one": np.array([1]),
        "two": np.array([2]),
    }
    settings = config(save(tmp_path / "theirs.onnx", end, constants=constants))
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    with pytest.raises(SourceError, match="is the output of a Softmax, not logits"):
        export_model(settings)


def test_a_missing_zero_beside_one_logit_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_graph, "_put_zero_before", lambda _: None)
    settings = config(save(tmp_path / "theirs.onnx", BINARY["a sigmoid"], constants=ONE_WEIGHT))
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    with pytest.raises(SourceError, match="its logits are"):
        load_source(settings)
