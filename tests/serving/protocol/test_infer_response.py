"""Responses in two halves are the messages that protobuf would have written whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foldserve.artifact.format import OUTPUTS
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.infer_response import ALL_OUTPUTS, Output, ResponseHeads, write_infer_response

if TYPE_CHECKING:
    from numpy.typing import NDArray


SHA256 = "5f" * 32
# NaN would not equal itself; any other number must arrive bit for bit.
floats = st.floats(width=32, allow_nan=False)
logits = arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=floats)


def response_heads() -> ResponseHeads:
    return ResponseHeads("tiny", "7", ("a", "b:c", "ü"), SHA256)


def write(
    outputs: tuple[Output, ...],
    request_id: str,
    values: NDArray[np.float32],
    heads: ResponseHeads | None = None,
) -> pb.ModelInferResponse:
    parameters = {"key": pb.InferParameter(string_param=request_id)}
    content = write_infer_response(
        heads or response_heads(), outputs, request_id, parameters, (values, -values)
    )
    return pb.ModelInferResponse.FromString(content)


@given(values=logits, request_id=st.text(max_size=20))
def test_head_and_tail_form_one_response(values: NDArray[np.float32], request_id: str) -> None:
    expected = pb.ModelInferResponse(
        model_name="tiny",
        model_version="7",
        id=request_id,
        outputs=[{"name": name, "datatype": "FP32", "shape": values.shape} for name in OUTPUTS],
        raw_output_contents=[values.tobytes(), (-values).tobytes()],
        parameters={
            "key": pb.InferParameter(string_param=request_id),
            "model_sha256": pb.InferParameter(string_param=SHA256),
        },
    )
    assert write(ALL_OUTPUTS, request_id, values) == expected


@given(values=logits)
def test_outputs_are_returned_in_the_requested_order(values: NDArray[np.float32]) -> None:
    message = write((Output("probabilities"), Output("logits")), "", values)
    assert [output.name for output in message.outputs] == ["probabilities", "logits"]
    assert list(message.raw_output_contents) == [(-values).tobytes(), values.tobytes()]


def test_callers_cannot_set_the_hash_of_the_model() -> None:
    parameters = {"model_sha256": pb.InferParameter(string_param="another")}
    values = np.zeros((1, 3), np.float32)
    content = write_infer_response(response_heads(), ALL_OUTPUTS, "", parameters, (values, values))
    message = pb.ModelInferResponse.FromString(content)
    assert message.parameters["model_sha256"].string_param == SHA256


def test_cached_heads_match_their_rows_and_outputs() -> None:
    heads = response_heads()
    for _ in range(2):
        for count in (1, 2):
            for outputs in (ALL_OUTPUTS, (Output("logits"),), (Output("logits", 2),)):
                message = write(outputs, "", np.zeros((count, 3), np.float32), heads)
                assert [output.name for output in message.outputs] == [output.name for output in outputs]
                assert all(output.shape[0] == count for output in message.outputs)


def test_cache_of_heads_is_bounded() -> None:
    heads = response_heads()
    for count in range(5000):
        heads.get(count, ALL_OUTPUTS)
    assert len(heads._kept) <= 1024


def test_classification_keeps_the_order_of_equals_and_colons_in_labels() -> None:
    message = write((Output("logits", 3),), "", np.array([[1, 2, 2]], np.float32))
    content = message.raw_output_contents[0]
    expected = b"".join(
        len(text.encode()).to_bytes(4, "little") + text.encode()
        for text in ("2.000000:1:b:c", "2.000000:2:ü", "1.000000:0:a")
    )
    assert content == expected
