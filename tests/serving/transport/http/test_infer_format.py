"""Whatever form pixels come in over HTTP, the services see what they would see over gRPC."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.artifact.format import TensorSpec
from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.transport.http.infer_format import (
    read_infer_request,
    read_pixels,
    write_infer_response,
)
from foldserve.serving.transport.http.json_messages import MAX_JSON_BYTES
from tests.support.http_calls import binary_body, json_body
from tests.support.server_process import infer_request

SPEC = TensorSpec("image", "UINT8", (-1, 1, 2, 3))


def images_of(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 2, 3), dtype=np.uint8)


@given(count=st.integers(1, 5), seed=st.integers(0, 9), depth=st.integers(1, 4))
def test_pixels_of_every_form_become_the_message_of_grpc(count: int, seed: int, depth: int) -> None:
    images = images_of(count, seed)
    expected = infer_request(images)
    flat = read_infer_request(json_body(images).encode(), None, "tiny", "")
    assert flat.message == expected
    plain = json.loads(json_body(images))
    plain["inputs"][0]["data"] = images.reshape(*images.shape[: depth - 1], -1).tolist()
    assert read_infer_request(json.dumps(plain).encode(), None, "tiny", "").message == expected
    content, headers = binary_body(images)
    binary = read_infer_request(content, *headers.values(), "tiny", "")
    assert binary.message == expected
    assert (binary.is_binary("logits"), flat.is_binary("logits")) == (True, False)
    assert read_pixels(images.tobytes(), SPEC, "tiny", "").message == expected


def test_encoded_images_in_base64_become_bytes_elements() -> None:
    elements = [b"one", b"", b"three"]
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [3],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(element).decode() for element in elements],
    }
    read = read_infer_request(json.dumps({"inputs": [tensor]}).encode(), None, "tiny", "1")
    expected = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    assert list(read.message.raw_input_contents) == [expected]
    assert not read.message.inputs[0].parameters
    assert read.message.model_version == "1"


def test_parameters_keep_their_types_and_those_of_http_are_left_out() -> None:
    parameters = {"timeout": 7, "flag": True, "text": "x", "half": 0.5, "binary_data_output": True}
    outputs = [
        {"name": "logits", "parameters": {"binary_data": False}},
        {"name": "probabilities", "parameters": {"classification": 2, "binary_data": True}},
    ]
    body = json_body(images_of(1, 0), id="7", parameters=parameters, outputs=outputs)
    read = read_infer_request(body.encode(), None, "tiny", "")
    kinds = {
        key: parameter.WhichOneof("parameter_choice") for key, parameter in read.message.parameters.items()
    }
    assert kinds == {
        "timeout": "int64_param",
        "flag": "bool_param",
        "text": "string_param",
        "half": "double_param",
    }
    assert [list(output.parameters) for output in read.message.outputs] == [[], ["classification"]]
    assert (read.is_binary("logits"), read.is_binary("probabilities"), read.message.id) == (False, True, "7")


def wrong_bodies() -> dict[str, tuple[str, str]]:
    """Bodies that are refused, by name, with a part of the message."""

    def tensor(**fields: Any) -> str:
        given = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [0] * 6}
        return json.dumps({"inputs": [given | fields]})

    return {
        "no JSON": ("{", "the body is not JSON"),
        "not UTF-8": ("\udcff", "the body is not JSON"),
        "a list": ("[]", "'the body' in the JSON is wrong"),
        "no inputs": ("{}", "'inputs' in the JSON is wrong"),
        "nested too deep": ("[" * 100_000, "it is nested too deep"),
        "a number of many digits": ('{"inputs": ' + "9" * 5000 + "}", "the body is not JSON"),
        "half of a character as id": (
            '{"id": "\\ud800", "inputs": []}',
            "surrogates not allowed",
        ),
        "half of a character as name": (tensor(name="\udc00"), "surrogates not allowed"),
        "half of a character in a parameter": (
            tensor(parameters={"a\ud800": "b"}),
            "surrogates not allowed",
        ),
        "a whole number of 65 bits": (
            '{"parameters": {"a": 18446744073709551616}, "inputs": []}',
            "'parameters' in the JSON is wrong: 'a' is a whole number of more than 64 bits",
        ),
        "NaN": (tensor(data=[float("nan")] * 6), "NaN is not a JSON number"),
        "fractions": (tensor(data=[0.5] * 6), "'0.5' at element 0; UINT8 pixels are integers"),
        "a pixel too bright": (tensor(data=[0] * 5 + [256]), "'256' at element 5; UINT8 pixels are 0..255"),
        "true": (tensor(data=[0, True, 0, 0, 0, 0]), "'True' at element 1"),
        "text": (tensor(data=["a"] * 6), "'a' at element 0"),
        "too few": (tensor(data=[0] * 5), "5 elements in data, which is too few"),
        "ragged": (tensor(data=[[0, 0], [0, 0, 0, 0]]), "nested lists of different length"),
        "many nested lists": (tensor(data=json.loads("[" * 40 + "]" * 40)), "nested in more than 16 lists"),
        "a shape of text": (tensor(shape=["1"]), "'inputs.0.shape.0' in the JSON is wrong"),
        "a shape of many": (tensor(shape=[1] * 65), "65 items; send at most 64"),
        "a huge shape": (tensor(shape=[2**63 - 1] * 5), "which is too few"),
        "a shape beyond int64": (tensor(shape=[2**63]), "'inputs.0.shape.0' in the JSON is wrong"),
        "text for BYTES": (tensor(datatype="BYTES", shape=[1], data=["x"]), "encode each element in base64"),
        "no base64": (
            tensor(datatype="BYTES", shape=[1], data=["!"], parameters={"content_type": "base64"}),
            "element 0 that is not base64",
        ),
        "bytes that are not there": (
            tensor(data=None, parameters={"binary_data_size": 6}),
            "binary_data_size 6, but 0 bytes",
        ),
        "a negative size": (tensor(data=None, parameters={"binary_data_size": -1}), "binary_data_size -1"),
        "a size of text": (tensor(data=None, parameters={"binary_data_size": "6"}), "send a number of bytes"),
        "both forms": (tensor(parameters={"binary_data_size": 0}), "send one of them"),
        "a flag of text": (
            json.dumps({"inputs": [], "parameters": {"binary_data_output": "yes"}}),
            "send true or false",
        ),
        "an infinite parameter": (
            '{"parameters": {"a": 1e999}, "inputs": []}',
            "'parameters.a.float' in the JSON is wrong: Input should be a finite number",
        ),
        "parameters of lists": (tensor(parameters={"a": []}), "'inputs.0.parameters.a"),
        "too large": (" " * (MAX_JSON_BYTES + 1), "send the pixels in the binary extension"),
    }


@pytest.mark.parametrize("case", wrong_bodies())
def test_wrong_bodies_are_refused_with_the_place_and_the_reason(case: str) -> None:
    body, reason = wrong_bodies()[case]
    with pytest.raises(InvalidArgumentError) as refused:
        read_infer_request(body.encode("utf-8", "surrogateescape"), None, "tiny", "")
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "7.0", "²", "99999999999999999999", "1000000"])
def test_wrong_lengths_of_the_json_part_are_refused(length: str) -> None:
    with pytest.raises(InvalidArgumentError, match="Inference-Header-Content-Length"):
        read_infer_request(json_body(images_of(1, 0)).encode(), length, "tiny", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            None,
            "the body is not JSON: .*; if tensors are behind the JSON, send its length in Inference-Header",
        ),
        (-1, "the JSON part, [0-9]+ bytes by the header Inference-Header.* not in characters"),
        (1, "the JSON part, [0-9]+ bytes by the header Inference-Header.* not in characters"),
    ],
    ids=["left out", "too short", "too long"],
)
def test_json_part_of_another_length_is_explained(change: int | None, words: str) -> None:
    content, headers = binary_body(images_of(1, 0), id="é")
    (length,) = headers.values()
    with pytest.raises(InvalidArgumentError, match=words):
        read_infer_request(content, None if change is None else str(int(length) + change), "tiny", "")


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    content, headers = binary_body(images_of(1, 0))
    with pytest.raises(InvalidArgumentError, match="1 bytes behind the JSON belong to no input"):
        read_infer_request(content + b"\0", *headers.values(), "tiny", "")


@pytest.mark.parametrize("size", [0, 1, 5, 7])
def test_pixels_alone_must_be_whole_images(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the body has {size} bytes of pixels"):
        read_pixels(bytes(size), SPEC, "tiny", "")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
_TENSOR = st.fixed_dictionaries(
    {"name": _JSON | st.just("image"), "datatype": _JSON | st.sampled_from(["UINT8", "BYTES", "FP32"])},
    optional={
        "shape": _JSON | st.lists(st.integers(-1, 6), max_size=5),
        "data": _JSON | st.lists(st.integers(-1, 256), max_size=6),
        "parameters": _JSON | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9)}),
    },
)


@given(
    plain=_JSON | st.fixed_dictionaries({"inputs": st.lists(_TENSOR, max_size=2)}),
    behind=st.binary(max_size=8),
    length=st.none() | st.integers(-1, 80).map(str),
)
def test_any_body_is_read_or_refused(plain: Any, behind: bytes, length: str | None) -> None:
    """Nothing that a caller sends is answered with INTERNAL."""
    content = json.dumps(plain).encode("utf-8", "surrogatepass") + behind
    try:
        read = read_infer_request(content, length, "tiny", "")
    except InvalidArgumentError:
        return
    assert isinstance(read.message, pb.ModelInferRequest)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_float32_survives_json(values: list[float]) -> None:
    array = np.array(values, np.float32)
    response = pb.ModelInferResponse(
        outputs=[{"name": "logits", "datatype": "FP32", "shape": [1, len(values)]}],
        raw_output_contents=[array.tobytes()],
    )
    request = read_infer_request(b'{"inputs": []}', None, "tiny", "")
    content, json_length = write_infer_response(response.SerializeToString(), request)
    assert json_length is None
    returned = np.array(json.loads(content)["outputs"][0]["data"], np.float32)
    assert returned.tobytes() == array.tobytes()
