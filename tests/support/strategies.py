"""Generators of requests: sound ones, and such as somebody gets wrong or makes up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

PIXELS = 64  # of one image of the tiny network: [1, 8, 8]
SHAPE = (1, 8, 8)
# A black PNG of 8 x 8 pixels.
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000008000000080800000000e164e1570000000c49444154789c6360a00e00"
    "00004800012eb83c7e0000000049454e44ae426082"
)
DATATYPES = ("UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BOOL", "BYTES", "", "uint8")

_texts = st.text(max_size=8)
_sides = st.sampled_from([-(2**63), -1, 0, 1, 2, 8, 9, 2**31, 2**58, 2**62, 2**63 - 1])
_shapes = st.one_of(
    _sides.map(lambda rows: [rows, *SHAPE]),
    st.lists(_sides, max_size=5),
    st.sampled_from([[8, 8], [1, 8, 8], [2, 8, 8, 1], [1], [2], [2, 1], [1, 3, 8, 8]]),
)
_contents = st.builds(
    pb.InferTensorContents,
    uint_contents=st.one_of(st.just([]), st.lists(st.integers(0, 300), max_size=4), st.just([7] * PIXELS)),
    int_contents=st.lists(st.integers(-5, 5), max_size=2),
    fp32_contents=st.lists(st.floats(width=32), max_size=2),
    bytes_contents=st.lists(st.binary(max_size=9), max_size=2),
)
_raw = st.one_of(
    st.integers(0, 3).map(lambda rows: bytes(range(PIXELS)) * rows),
    st.binary(max_size=20),
    st.sampled_from([b"\x01\0\0\0a", b"\xff\xff\xff\xffa", b"\x02\0\0\0", bytes(4)]),
)
_values = st.one_of(
    st.builds(pb.InferParameter, int64_param=st.sampled_from([-(2**63), -1, 0, 1, 3, 2**63 - 1])),
    st.builds(pb.InferParameter, string_param=_texts),
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.just(pb.InferParameter()),
)
# No "timeout": whether one passes is a matter of luck, and both transports must say the same.
_request_parameters = st.dictionaries(st.one_of(_texts, st.just("priority")), _values, max_size=2)
_tensor_parameters = st.dictionaries(
    st.sampled_from(["shared_memory_region", "binary_data_size", "classification", "other"]),
    _values,
    max_size=2,
)
_inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["image", "image", "mask"]),
    datatype=st.sampled_from(DATATYPES),
    shape=_shapes,
    contents=st.one_of(st.none(), _contents),
)
_outputs = st.builds(
    pb.ModelInferRequest.InferRequestedOutputTensor,
    name=st.one_of(st.sampled_from(["logits", "probabilities"]), _texts),
    parameters=_tensor_parameters,
)


@st.composite
def sound_requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Requests that are answered: raw or typed contents, any outputs, id and parameters."""
    rows = draw(st.integers(1, 3))
    pixels = draw(st.binary(min_size=rows * PIXELS, max_size=rows * PIXELS))
    names = draw(st.sampled_from([[], ["logits"], ["probabilities", "logits"]]))
    message = pb.ModelInferRequest(
        model_name="tiny",
        id=draw(_texts),
        inputs=[{"name": "image", "datatype": "UINT8", "shape": [rows, *SHAPE]}],
        outputs=[{"name": name} for name in names],
        parameters=draw(_request_parameters),
    )
    if draw(st.booleans()):
        message.raw_input_contents.append(pixels)
    else:
        message.inputs[0].contents.uint_contents.extend(pixels)
    return message


# What is put in place of a sound request's fields.
_CHANGES = {
    "model_name": _texts,
    "model_version": st.one_of(st.sampled_from(["1", "2", "01", "-1"]), _texts),
    "inputs": st.lists(_inputs, max_size=3),
    "outputs": st.lists(_outputs, max_size=3),
    "raw_input_contents": st.one_of(_raw.map(lambda raw: [raw]), st.lists(_raw, max_size=3)),
}
_INPUT_CHANGES = {
    "name": _texts,
    "datatype": st.one_of(st.sampled_from(DATATYPES), _texts),
    "shape": _shapes,
    "contents": _contents,
    "parameters": _tensor_parameters,
}


@st.composite
def infer_requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Sound requests of which up to three fields were changed to something else."""
    message = draw(sound_requests())
    for _ in range(draw(st.integers(0, 3))):
        owner, changes = message, _CHANGES
        if message.inputs and draw(st.booleans()):
            owner, changes = message.inputs[0], _INPUT_CHANGES
        # What holds the numbers more often: it has the more ways to be wrong.
        numbers = [name for name in ("shape", "contents", "raw_input_contents") if name in changes]
        name = draw(st.sampled_from([*changes, *numbers, *numbers]))
        owner.ClearField(name)
        owner.MergeFrom(type(owner)(**{name: draw(changes[name])}))
    return message


classify_requests = st.builds(
    classifier_pb2.ClassifyRequest,
    model_name=st.one_of(st.just("tiny"), _texts),
    model_version=st.sampled_from(["", "", "1", "7"]),
    id=_texts,
    images=st.lists(st.one_of(st.binary(max_size=40), st.just(PICTURE)), max_size=3),
    top_k=st.sampled_from([0, 1, 2**32 - 1]),
)


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[Message]) -> bytes:
    """The bytes of a message, with some of them changed, cut out or put in."""
    content = bytearray(draw(messages).SerializeToString())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 3))
        content[place : place + length] = draw(st.binary(max_size=4))
    return bytes(content)
