"""Bad requests are explained over the wire: status, what was given, what was expected, what to do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.server_process import ServerProcess, infer_request, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.artifacts import TinyNetwork

PIXELS = bytes(64)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def request(
    shape: list[int] | None = None,
    raw: bytes | None = PIXELS,
    *,
    model: str = "tiny",
    datatype: str = "UINT8",
    name: str = "image",
) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[{"name": name, "datatype": datatype, "shape": [1, 1, 8, 8] if shape is None else shape}],
        raw_input_contents=[] if raw is None else [raw],
    )


def typed(count: int = 64, **contents: list[float]) -> pb.ModelInferRequest:
    message = request(raw=None)
    message.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents or {"uint_contents": [1] * count}))
    return message


def typed_with_shape(shape: list[int]) -> pb.ModelInferRequest:
    message = typed()
    message.inputs[0].ClearField("shape")
    message.inputs[0].shape.extend(shape)
    return message


def set_parameters(
    owner: pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor, count: int
) -> None:
    for index in range(count):
        owner.parameters[str(index)].bool_param = True


def changed(change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    message = request()
    change(message)
    return message


def set_output(message: pb.ModelInferRequest, name: str, parameter: str, value: int = 1) -> None:
    message.outputs.add(name=name).parameters[parameter].int64_param = value


CASES = {
    "unknown model": (request(model="nets"), NOT_FOUND, ["'nets'", "'colour', 'tiny'"]),
    "no model named": (request(model=""), NOT_FOUND, ["''", "'colour', 'tiny'"]),
    "hidden folder as model": (request(model=".hidden"), NOT_FOUND, ["'.hidden'"]),
    "path as model": (request(model="../models/tiny"), NOT_FOUND, ["'../models/tiny'"]),
    "huge model name": (request(model="x" * 100_000), NOT_FOUND, ["xxx…'"]),
    "unknown version": (
        changed(lambda message: setattr(message, "model_version", "7")),
        NOT_FOUND,
        ["'7'", "it has 1, 2"],
    ),
    "version with a leading zero": (
        changed(lambda message: setattr(message, "model_version", "01")),
        NOT_FOUND,
        ["'01'"],
    ),
    "no input": (
        changed(lambda message: message.ClearField("inputs")),
        INVALID,
        ["no inputs", "'image' (UINT8 [N, 1, 8, 8])"],
    ),
    "unknown input name": (
        request(name="pixels\n"),
        INVALID,
        ["'pixels\\n'", "'image' (UINT8 [N, 1, 8, 8])"],
    ),
    "additional input": (
        changed(lambda message: message.inputs.add(name="mask", datatype="UINT8", shape=[1])),
        INVALID,
        ["'mask'", "exactly 'image'"],
    ),
    "second input of other rows": (
        changed(lambda message: message.inputs.add(name="image", datatype="UINT8", shape=[2, 1, 8, 8])),
        INVALID,
        ["'image' is sent 2 times"],
    ),
    "100,000 fields": (
        changed(lambda message: message.raw_input_contents.extend([b""] * 100_000)),
        INVALID,
        ["more than 32768 fields and elements", "send pixels in raw_input_contents"],
    ),
    "100,000 dimensions": (
        request([1] * 100_000),
        INVALID,
        ["more than 32768 fields and elements", "send pixels in raw_input_contents"],
    ),
    "ten million typed pixels": (
        typed(10_000_000),
        INVALID,
        ["10000000 bytes", "as typed contents", "raw_input_contents, or fewer images"],
    ),
    "100,000 images": (
        request([100_000, 1, 8, 8], raw=bytes(6_400_000)),
        INVALID,
        ["more than 16384 images", "send them in several"],
    ),
    "1,000 inputs": (
        changed(lambda message: message.inputs.extend([message.inputs[0]] * 1_000)),
        INVALID,
        ["sent 1001 times"],
    ),
    "1,000 parameters of the input": (
        changed(lambda message: set_parameters(message.inputs[0], 1_000)),
        INVALID,
        ["input 'image' has 1000 parameters", "at most 64"],
    ),
    "same input twice": (
        changed(lambda message: message.inputs.append(message.inputs[0])),
        INVALID,
        ["'image' is sent 2 times"],
    ),
    "float pixels": (
        request(raw=bytes(256), datatype="FP32"),
        INVALID,
        ["'FP32'", "takes UINT8", "0..255", "normalisation (mean, std) is inside the model"],
    ),
    "signed pixels": (request(datatype="INT8"), INVALID, ["'INT8'", "takes UINT8"]),
    "no datatype": (request(datatype=""), INVALID, ["''", "takes UINT8"]),
    "no batch dimension": (
        request([1, 8, 8]),
        INVALID,
        ["[1, 8, 8]", "batch dimension is missing", "send [1, 1, 8, 8]"],
    ),
    "no batch and no channel dimension": (request([8, 8]), INVALID, ["[8, 8]", "send [1, 1, 8, 8]"]),
    "no shape": (request([]), INVALID, ["[]", "[N, 1, 8, 8]"]),
    "channels last": (
        request([2, 6, 10, 3], bytes(360), model="colour"),
        INVALID,
        ["[2, 6, 10, 3]", "transpose(0, 3, 1, 2)", "[2, 3, 6, 10]"],
    ),
    "channels last without batch": (
        request([6, 10, 3], bytes(180), model="colour"),
        INVALID,
        ["transpose(2, 0, 1)[None]", "[1, 3, 6, 10]"],
    ),
    "other size": (request([1, 1, 9, 8], bytes(72)), INVALID, ["[1, 1, 9, 8]", "8x8 pixels", "resize"]),
    "colour for grey": (request([1, 3, 8, 8], bytes(192)), INVALID, ["[1, 3, 8, 8]", "grey (1 channel)"]),
    "no rows": (request([0, 1, 8, 8], b""), INVALID, ["[0, 1, 8, 8]", "at least 1"]),
    "negative rows": (request([-1, 1, 8, 8]), INVALID, ["[-1, 1, 8, 8]", "at least 1"]),
    "absurd rows": (request([2**62, 1, 8, 8]), INVALID, ["64 bytes", "too few", str(2**62 * 64)]),
    "absurd sides": (request([1, 1, 2**62, 2**62]), INVALID, [str(2**62), "8x8"]),
    "rows whose bytes overflow to none": (request([2**58, 1, 8, 8], b""), INVALID, ["too few", str(2**64)]),
    "least number of rows": (request([-(2**63), 1, 8, 8], b""), INVALID, [str(-(2**63)), "at least 1"]),
    "negative sides": (request([1, 1, -8, -8]), INVALID, ["[1, 1, -8, -8]", "[N, 1, 8, 8]"]),
    "absurd rows, typed": (
        typed_with_shape([2**58, 1, 8, 8]),
        INVALID,
        ["64 elements", "too few", str(2**64)],
    ),
    "1,000 dimensions": (request([1] * 1_000), INVALID, ["1, 1, …]", "[N, 1, 8, 8]"]),
    "too few bytes": (request(raw=bytes(63)), INVALID, ["63 bytes", "too few", "needs 64"]),
    "too many bytes": (request(raw=bytes(65)), INVALID, ["65 bytes", "too many", "needs 64"]),
    "raw and typed together": (
        changed(lambda message: message.inputs[0].contents.uint_contents.extend([0] * 64)),
        INVALID,
        ["twice", "send one"],
    ),
    "two raw buffers": (
        changed(lambda message: message.raw_input_contents.append(PIXELS)),
        INVALID,
        ["2 buffers for 1 input"],
    ),
    "1,000 raw buffers": (
        changed(lambda message: message.raw_input_contents.extend([b""] * 1_000)),
        INVALID,
        ["1001 buffers for 1 input"],
    ),
    "numbers that are not finite": (
        typed(fp32_contents=[float("nan"), float("inf")] * 32),
        INVALID,
        ["fp32_contents", "contents.uint_contents"],
    ),
    "FP32 that is not finite": (
        request(raw=np.full(64, np.nan, np.float32).tobytes(), datatype="FP32"),
        INVALID,
        ["'FP32'", "normalisation (mean, std) is inside the model"],
    ),
    "no contents at all": (request(raw=None), INVALID, ["no elements", "raw_input_contents"]),
    "typed contents in the wrong field": (
        typed(int_contents=[1] * 64),
        INVALID,
        ["int_contents", "contents.uint_contents"],
    ),
    "typed contents in two fields": (
        typed(int_contents=[1], uint_contents=[1] * 64),
        INVALID,
        ["int_contents and uint_contents"],
    ),
    "typed contents above 255": (
        typed(uint_contents=[1] * 63 + [256]),
        INVALID,
        ["256 at element 63", "0..255"],
    ),
    "too few typed elements": (typed(63), INVALID, ["63 elements", "too few", "needs 64"]),
    "unknown output": (
        changed(lambda message: message.outputs.add(name="labels")),
        INVALID,
        ["'labels'", "'logits', 'probabilities'"],
    ),
    "1,000 outputs": (
        changed(lambda message: [message.outputs.add(name="logits") for _ in range(1_000)]),
        INVALID,
        ["once"],
    ),
    "1,000 parameters of an output": (
        changed(lambda message: set_parameters(message.outputs.add(name="logits"), 1_000)),
        INVALID,
        ["output 'logits' has 1000 parameters", "at most 64"],
    ),
    "same output twice": (
        changed(lambda message: [message.outputs.add(name="logits") for _ in range(2)]),
        INVALID,
        ["once"],
    ),
    "classification of no class": (
        changed(lambda message: set_output(message, "logits", "classification", 0)),
        INVALID,
        ["classification", "int64_param of at least 1"],
    ),
    "shared memory": (
        changed(lambda message: set_output(message, "logits", "shared_memory_region")),
        grpc.StatusCode.UNIMPLEMENTED,
        ["shared memory"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_request_is_explained_and_the_next_one_served(
    server: ServerProcess, network: TinyNetwork, case: tuple[pb.ModelInferRequest, grpc.StatusCode, list[str]]
) -> None:
    message, expected_code, fragments = case
    code, text = status_of(lambda: server.stub.ModelInfer(message))
    assert code == expected_code, text
    assert all(fragment in text for fragment in fragments), text
    assert "\n" not in text
    assert len(text) < 1000
    images = network.random_images(1)
    assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5


def test_message_over_the_limit_is_refused_and_the_next_one_served(
    server: ServerProcess, network: TinyNetwork
) -> None:
    too_large = infer_request(np.zeros((2**20 + 1, 1, 8, 8), np.uint8))
    code, text = status_of(lambda: server.stub.ModelInfer(too_large))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"at most {32 * 2**20}:" in text
    assert "--max-message-mib" in text
    assert server.infer(network.random_images(1)).model_name == "tiny"


def test_message_that_decompresses_over_the_limit_is_refused(
    server: ServerProcess, network: TinyNetwork
) -> None:
    """Compressed a thousandfold: the decompressed size counts."""
    too_large = infer_request(np.zeros((2**20 + 1, 1, 8, 8), np.uint8))
    call = server.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    code, text = status_of(lambda: call(too_large, compression=grpc.Compression.Gzip))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "--max-message-mib" in text
    assert outputs_of(call(infer_request(network.random_images(1)), compression=grpc.Compression.Gzip))


def test_malformed_messages_are_refused_one_by_one(server: ServerProcess, network: TinyNetwork) -> None:
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    code, text = status_of(lambda: call(b"\xff\xff\xff garbage"))
    assert code == INVALID
    assert "cannot parse the 11 bytes received as inference.ModelInferRequest" in text
    assert server.infer(network.random_images(1)).model_name == "tiny"


def test_bad_requests_do_not_affect_good_callers(server: ServerProcess, network: TinyNetwork) -> None:
    """All small bad requests at once, while eight callers send good ones."""
    small = [case for case in CASES.values() if case[0].ByteSize() < 1_000] * 3
    ended = threading.Event()

    def code_of(message: pb.ModelInferRequest) -> grpc.StatusCode:
        return status_of(lambda: server.stub.ModelInfer(message))[0]

    def ask(seed: int) -> int:
        asked = 0
        while not ended.is_set() or asked < 20:
            images = network.random_images(1 + asked % 40, seed=seed + asked)
            outputs = outputs_of(server.infer(images, id=str(asked)))
            assert np.abs(outputs["logits"] - network.logits(images)).max() < 1e-5
            asked += 1
        return asked

    with ThreadPoolExecutor(8) as callers:
        good = [callers.submit(ask, 1000 * index) for index in range(8)]
        try:
            with ThreadPoolExecutor(4) as bad_callers:
                codes = list(bad_callers.map(code_of, (message for message, *_ in small)))
        finally:
            ended.set()
        assert all(caller.result() >= 20 for caller in good)
    assert codes == [code for _, code, _ in small]
    assert "Traceback" not in server.log
