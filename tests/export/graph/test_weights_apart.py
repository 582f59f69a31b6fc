"""Weights kept apart from their message: the same values, and no message that holds them."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.export.graph import weights_apart
from foldserve.export.graph.model_bytes import parts_with_weights
from foldserve.export.graph.serialize import with_inputs_for
from foldserve.export.graph.weights_apart import array_of, attach_weights, set_weights_apart, write_apart

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "first": RANDOM.normal(size=(300, 100)).astype(np.float32),
    "bias": RANDOM.normal(size=100).astype(np.float32),
    "places": RANDOM.integers(0, 9, 40_000),
    "second": RANDOM.normal(size=(100, 200)).astype(np.float32),
}


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(weights_apart, "LARGE_BYTES", 100_000)


def message(*, in_floats: bool = False, ir_version: int = 10) -> onnx.ModelProto:
    """A network of two layers; ``in_floats``: the first weight is a list of numbers, not raw bytes."""
    nodes = [
        helper.make_node("Gemm", ["x", "first", "bias"], ["h"]),
        helper.make_node("MatMul", ["h", "second"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in ARRAYS.items()]
    if in_floats:
        tensors[0] = helper.make_tensor("first", TensorProto.FLOAT, (300, 100), ARRAYS["first"].ravel())
    names = ["x"] if ir_version > 3 else ["x", *ARRAYS]
    shapes = {"x": ["N", 300], **{name: array.shape for name, array in ARRAYS.items()}}
    types = {"places": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "layers",
        [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shapes[name])
            for name in names
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 200])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=ir_version)


@pytest.mark.parametrize("in_floats", [False, True])
def test_large_float_weights_leave_the_message(in_floats, tmp_path):
    given = message(in_floats=in_floats)
    without, weights = set_weights_apart(given, tmp_path)
    assert set(weights) == {"first", "second"}
    for name, tensor in weights.items():
        assert np.array_equal(tensor.numpy(), ARRAYS[name])
        assert tensor.numpy().flags.writeable
        assert tensor.numpy().flags.aligned
    assert without.ByteSize() < 1000 + ARRAYS["places"].nbytes
    for tensor in without.graph.initializer:
        assert np.array_equal(array_of(tensor, weights), ARRAYS[tensor.name])
    content = b"".join(parts_with_weights(without, weights))
    assert content == message().SerializeToString(deterministic=True)


def test_what_is_written_to_a_weight_stays_in_memory(tmp_path):
    _, weights = set_weights_apart(message(), tmp_path)
    array = weights["first"].numpy()
    array[0, 0] = 7.0
    assert weights["first"].numpy()[0, 0] == 7.0


def test_released_weights_are_read_again(tmp_path):
    def resident() -> int:
        return sum(
            int(line.split()[1])
            for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
            if line[:4] == "Rss:"
        )

    large = np.random.default_rng(1).normal(size=(64, 2**18)).astype(np.float32)
    graph = helper.make_graph([], "large", [], [], [numpy_helper.from_array(large, "large")])
    _, weights = set_weights_apart(helper.make_model(graph), tmp_path)
    assert weights["large"].numpy().sum() == large.sum()
    before = resident()
    weights.release()
    assert before - resident() > 0.8 * large.nbytes / 1024
    assert np.array_equal(weights["large"].numpy(), large)


def test_small_messages_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_apart, "LARGE_BYTES", 10**6)
    given = message()
    without, weights = set_weights_apart(given, tmp_path)
    assert without is given
    assert not weights


def test_external_data_is_read_and_a_file_outside_the_folder_is_not(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        message(), folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    given = onnx.load(folder / "m.onnx", load_external_data=False)
    without, weights = set_weights_apart(given, folder)
    assert np.array_equal(weights["second"].numpy(), ARRAYS["second"])
    assert {t.data_location for t in without.graph.initializer if t.name in weights} == {TensorProto.DEFAULT}
    (tmp_path / "secret.bin").write_bytes((folder / "weights.bin").read_bytes())
    given = onnx.load(folder / "m.onnx", load_external_data=False)
    given.graph.initializer[0].external_data[0].value = "../secret.bin"
    with pytest.raises((ValueError, onnx.checker.ValidationError)):
        set_weights_apart(given, folder)


def test_a_weight_of_another_size_than_its_shape_is_refused(tmp_path):
    given = message()
    given.graph.initializer[0].dims[0] = 301
    with pytest.raises(ValueError, match="reshape"):
        set_weights_apart(given, tmp_path)


def test_without_room_for_temporary_files_the_message_stays_whole(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    given = message()
    without, weights = set_weights_apart(given, tmp_path)
    assert without is given
    assert np.array_equal(array_of(without.graph.initializer[0], weights), ARRAYS["first"])


@pytest.mark.parametrize("ir_version", [3, 10])
def test_a_message_without_weights_can_be_checked(ir_version, tmp_path):
    without, weights = set_weights_apart(message(ir_version=ir_version), tmp_path)
    onnx.checker.check_model(with_inputs_for(without, weights))
    without.graph.node[0].input[1] = "missing"
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(with_inputs_for(without, weights))


def test_weights_that_were_computed_are_kept_in_a_file_too(tmp_path):
    without, weights = set_weights_apart(message(), tmp_path)
    model = ir.from_proto(without)
    attach_weights(model, weights)
    doubled = 2 * ARRAYS["first"]
    model.graph.initializers["first"].const_value = ir.tensor(doubled, name="first")
    prepared, apart, file = write_apart(model, weights)
    assert apart["second"] is weights["second"]
    assert np.array_equal(apart["first"].numpy(), doubled)
    assert not np.shares_memory(apart["first"].numpy(), doubled)
    assert np.array_equal(apart["places"].numpy(), ARRAYS["places"])
    written = {
        t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(file.content).graph.initializer
    }
    assert np.array_equal(written["first"], doubled)
    assert prepared.ByteSize() < 2000
