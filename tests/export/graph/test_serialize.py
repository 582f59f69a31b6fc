"""The bytes of a model file: those of protobuf, written without holding the weights twice."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from foldserve.export.errors import TraceError
from foldserve.export.graph import model_bytes, serialize
from foldserve.export.graph.model_file import ModelFile
from foldserve.runtime.session import Session

PROPS = {"foldserve.schema": "1", "z": "\u00e9"}
ROWS = 200  # a weight of 200 x 128 floats is large enough to be kept out of the checks


def linear_graph(weight, **types) -> ir.Model:
    """Return a graph that multiplies images, flattened, by ``weight`` and adds a small bias."""
    image = ir.Value(
        name="image", shape=ir.Shape(["batch", 1, 1, ROWS]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    target = constant("shape", np.array([-1, ROWS]))
    matrix, bias = constant("weight", weight), constant("bias", np.arange(128, dtype=np.float32))
    rows = ir.node("Reshape", [image, target], name="flatten")
    layer = ir.node("Gemm", [rows.outputs[0], matrix, bias], name="layer")
    rows.outputs[0].name, layer.outputs[0].name = "rows", "logits"
    layer.outputs[0].shape = ir.Shape(["batch", 128])
    layer.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [image],
        layer.outputs,
        nodes=[rows, layer],
        initializers=[target, matrix, bias],
        opset_imports={"": 18},
    )
    return ir.Model(graph, ir_version=10)


def constant(name, array) -> ir.Value:
    return ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )


@pytest.fixture
def weight():
    return np.random.default_rng(0).normal(size=(ROWS, 128)).astype(np.float32)


def test_file_has_the_bytes_of_protobuf_and_the_weights(weight):
    content = serialize.serialize(linear_graph(weight), PROPS)
    model_proto = onnx.load_from_string(content)
    assert model_proto.SerializeToString(deterministic=True) == content
    onnx.checker.check_model(model_proto, full_check=True)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model_proto.graph.initializer}
    assert list(tensors) == ["shape", "weight", "bias"]
    assert np.array_equal(tensors["weight"], weight)
    assert {entry.key: entry.value for entry in model_proto.metadata_props} == PROPS
    image = np.ones((3, 1, 1, ROWS), dtype=np.float32)
    logits = Session(content, device="cpu", intra_op_threads=1).run(["logits"], {"image": image})[0]
    assert np.allclose(logits, weight.sum(axis=0) + np.arange(128), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.float64, np.uint8])
def test_weights_of_every_width_are_written_whole(dtype):
    array = np.random.default_rng(0).integers(0, 100, (300, 300)).astype(dtype)
    model = linear_graph(np.zeros((ROWS, 128), dtype=np.float32))
    model.graph.register_initializer(constant("unused", array))
    cast = ir.node("Cast", [model.graph.initializers["unused"]], {"to": ir.DataType.FLOAT}, name="cast")
    cast.outputs[0].name, cast.outputs[0].shape = "kept", ir.Shape(array.shape)
    cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(cast)
    model.graph.outputs.append(cast.outputs[0])
    # Only the batch dimension of outputs is renamed, so this one is checked as it is written.
    proto = serialize._to_proto_without(model, serialize._large_weights(model.graph))
    content = b"".join(model_bytes.parts_with_weights(proto, serialize._large_weights(model.graph)))
    written = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(content).graph.initializer
    }
    assert np.array_equal(written["unused"], array)
    assert written["unused"].dtype == dtype


def test_the_graph_is_left_as_it_was(weight):
    model = linear_graph(weight)
    serialize.serialize(model, PROPS)
    assert np.array_equal(model.graph.initializers["weight"].const_value.numpy(), weight)


def test_large_weights_take_part_in_the_checks_by_their_shape(weight):
    with pytest.raises(TraceError, match="not valid ONNX"):
        serialize.serialize(linear_graph(weight[:-1]), PROPS)


def test_checks_and_messages_do_not_hold_large_weights(weight, monkeypatch):
    seen = []
    sound = serialize.check_model

    def recorded(model_proto):
        seen.append(model_proto.ByteSize())
        sound(model_proto)

    monkeypatch.setattr(serialize, "check_model", recorded)
    content = serialize.serialize(linear_graph(weight), PROPS)
    assert len(content) > weight.nbytes > 10 * max(seen)


def test_files_above_what_protobuf_reads_are_refused(weight, monkeypatch):
    monkeypatch.setattr(model_bytes, "_MOST_BYTES", weight.nbytes)
    with pytest.raises(TraceError, match="an ONNX file holds at most 2 GiB"):
        serialize.serialize(linear_graph(weight), PROPS)


def test_large_files_wait_on_disk_and_small_ones_in_memory(weight, monkeypatch):
    content = serialize.serialize(linear_graph(weight), PROPS)
    small = ModelFile(content)
    assert small.loadable is content
    monkeypatch.setattr("foldserve.export.graph.model_file.LARGE_BYTES", 1000)
    large = ModelFile(content)
    path = large.loadable
    assert large.content == path.read_bytes() == content
    assert large.size == len(content)
    image = np.ones((1, 1, 1, ROWS), dtype=np.float32)
    by_path, by_content = (
        Session(model, device="cpu", intra_op_threads=1).run(["logits"], {"image": image})[0]
        for model in (path, content)
    )
    assert np.array_equal(by_path, by_content)
    del large
    assert not path.exists()


def test_without_room_for_temporary_files_the_content_stays_in_memory(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("foldserve.export.graph.model_file.LARGE_BYTES", 1)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    file = ModelFile(b"content")
    assert file.content == file.loadable == b"content"
