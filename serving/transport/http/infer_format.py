"""Translates inference between HTTP and protobuf: JSON tensors, and Triton's binary extension.

The services then see the same messages as over gRPC, so that checks, answers and words are the same.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md,
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.image_count import MAX_ENCODED_IMAGES
from foldserve.serving.transport.http.json_messages import InferRequest, read_json
from foldserve.text import quote, shape_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foldserve.artifact.format import TensorSpec
    from foldserve.serving.transport.http.json_messages import InputTensor, Parameters, RequestedOutput

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"

_BINARY_SIZE = "binary_data_size"
_BINARY_OUTPUT = "binary_data"
_BINARY_OUTPUTS = "binary_data_output"
_CONTENT_TYPE = "content_type"  # MLServer's parameter for the codec of an input
_LENGTH = struct.Struct("<I")
_MOST_DIMENSIONS = 16  # of nested data; deeper lists are not tensors of pixels


class ReadRequest(NamedTuple):
    """An inference request as protobuf, and the names of the outputs wanted in binary (None: all)."""

    message: pb.ModelInferRequest
    binary_by_default: bool
    binary: Mapping[str, bool]

    def is_binary(self, output: str) -> bool:
        """Return whether the caller wants this output's values behind the JSON."""
        return self.binary.get(output, self.binary_by_default)


def read_infer_request(content: bytes, json_length: str | None, name: str, version: str) -> ReadRequest:
    """Read a body with a JSON part of ``json_length`` bytes (None: all of it) and tensors behind it.

    Raises:
        InvalidArgumentError: the body is not such a request, or sizes disagree.
    """
    size = _read_json_length(json_length, len(content))
    what, advice = "the body", f"; if tensors are behind the JSON, send its length in {JSON_LENGTH_HEADER}"
    if json_length is not None:
        what = f"the JSON part, {size} bytes by the header {JSON_LENGTH_HEADER},"
        advice = "; send its length in bytes, not in characters"
    request = read_json(InferRequest, content[:size], what=what, advice=advice)
    tensors = _Tensors(memoryview(content)[size:])
    message = pb.ModelInferRequest(model_name=name, model_version=version, id=request.id)
    _set_parameters(message.parameters, request.parameters, leave_out=(_BINARY_OUTPUTS,))
    raw_count = sum(_add_input(message, tensor, tensors) for tensor in request.inputs)
    tensors.check_all_read()
    if raw_count not in (0, len(request.inputs)):
        raise InvalidArgumentError("some inputs have data and others binary_data_size; send all in one form")
    for output in request.outputs:
        added = message.outputs.add(name=output.name)
        _set_parameters(added.parameters, output.parameters, leave_out=(_BINARY_OUTPUT,))
    return ReadRequest(
        message,
        binary_by_default=_flag(request.parameters, _BINARY_OUTPUTS, "the request"),
        binary=_binary_outputs(request.outputs),
    )


def read_pixels(content: bytes, spec: TensorSpec, name: str, version: str) -> ReadRequest:
    """Read a body of pixels alone (a JSON part of 0 bytes): as many images as it has bytes for.

    Raises:
        InvalidArgumentError: it is empty, or no whole number of images.
    """
    image_bytes = int(np.prod(spec.shape[1:]))
    count, rest = divmod(len(content), image_bytes)
    if rest or not count:
        raise InvalidArgumentError(
            f"the body has {len(content)} bytes of pixels; an image of '{spec.name}' has {image_bytes} "
            f"({shape_text(spec.shape[1:])}): send whole images, at least one"
        )
    message = pb.ModelInferRequest(model_name=name, model_version=version)
    message.inputs.add(name=spec.name, datatype=spec.datatype, shape=(count, *spec.shape[1:]))
    message.raw_input_contents.append(content)
    return ReadRequest(message, binary_by_default=True, binary={})


def write_infer_response(content: bytes, request: ReadRequest) -> tuple[bytes, int | None]:
    """Return the HTTP body for a serialised ModelInferResponse, and its JSON part's length if it has more."""
    response = pb.ModelInferResponse.FromString(content)
    plain: dict[str, Any] = {
        **({"id": response.id} if response.id else {}),
        "model_name": response.model_name,
        "model_version": response.model_version,
        "parameters": _plain_parameters(response.parameters),
        "outputs": [],
    }
    behind = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        written: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if request.is_binary(output.name):
            written["parameters"] = {_BINARY_SIZE: len(raw)}
            behind.append(raw)
        else:
            written["data"] = _elements(raw, output.datatype)
        plain["outputs"].append(written)
    head = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([head, *behind]), len(head) if behind else None


class _Tensors:
    """The bytes behind the JSON part, taken one input at a time."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._taken = 0

    def take(self, count: int, owner: str) -> bytes:
        left = len(self._content) - self._taken
        if not 0 <= count <= left:
            raise InvalidArgumentError(
                f"{owner} has {_BINARY_SIZE} {count}, but {left} bytes of the body are left for it"
            )
        self._taken += count
        return bytes(self._content[self._taken - count : self._taken])

    def check_all_read(self) -> None:
        if left := len(self._content) - self._taken:
            raise InvalidArgumentError(
                f"{left} bytes behind the JSON belong to no input: give each input its {_BINARY_SIZE}, and "
                f"the JSON part's length in the header {JSON_LENGTH_HEADER}"
            )


def _read_json_length(text: str | None, body_length: int) -> int:
    if text is None:
        return body_length
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= body_length):
        raise InvalidArgumentError(
            f"the header {JSON_LENGTH_HEADER} is {quote(text)}; send the length of the JSON part in bytes, "
            f"at most the body's {body_length}"
        )
    return int(text)


def _add_input(message: pb.ModelInferRequest, tensor: InputTensor, tensors: _Tensors) -> bool:
    """Add an input with its elements as raw bytes; return whether it has any."""
    owner = f"input {quote(tensor.name)}"
    added = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    _set_parameters(added.parameters, tensor.parameters, leave_out=(_BINARY_SIZE, _CONTENT_TYPE))
    if _BINARY_SIZE in tensor.parameters:
        if tensor.data is not None:
            raise InvalidArgumentError(f"{owner} has data and {_BINARY_SIZE}; send one of them")
        size = tensor.parameters[_BINARY_SIZE]
        if isinstance(size, bool) or not isinstance(size, int):
            raise InvalidArgumentError(
                f"{owner} has {_BINARY_SIZE} {quote(str(size))}; send a number of bytes"
            )
        message.raw_input_contents.append(tensors.take(size, owner))
        return True
    if tensor.data is None:
        return False
    if tensor.datatype == "BYTES":
        message.raw_input_contents.append(_encode_bytes(tensor, owner))
    elif tensor.datatype == "UINT8":
        message.raw_input_contents.append(_encode_pixels(tensor, owner))
    return tensor.datatype in ("BYTES", "UINT8")  # the service refuses the others, and says why


def _encode_pixels(tensor: InputTensor, owner: str) -> bytes:
    elements = _flatten(tensor.data or [], owner)
    expected = _element_count(tensor.shape)
    if len(elements) != expected:
        raise InvalidArgumentError(
            f"{owner} has {len(elements)} elements in data, which is too "
            f"{'few' if len(elements) < expected else 'many'}: its shape {shape_text(tuple(tensor.shape))} "
            f"needs {expected}, one per pixel and channel"
        )
    for kind in set(map(type, elements)) - {int}:
        index = next(index for index, element in enumerate(elements) if type(element) is kind)
        raise InvalidArgumentError(
            f"{owner} has {quote(str(elements[index]))} at element {index}; UINT8 pixels are integers, 0..255"
        )
    try:
        return bytes(elements)
    except ValueError:
        index = next(index for index, element in enumerate(elements) if not 0 <= element <= 255)
        raise InvalidArgumentError(
            f"{owner} has {quote(str(elements[index]))} at element {index}; UINT8 pixels are 0..255"
        ) from None


def _encode_bytes(tensor: InputTensor, owner: str) -> bytes:
    elements = _flatten(tensor.data or [], owner)
    if len(elements) > MAX_ENCODED_IMAGES:
        raise InvalidArgumentError(
            f"{owner} has {len(elements)} elements; send at most {MAX_ENCODED_IMAGES} encoded images"
        )
    if tensor.parameters.get(_CONTENT_TYPE) != "base64":
        raise InvalidArgumentError(
            f"{owner} has BYTES in JSON, which cannot hold the bytes of an image: encode each element in "
            f'base64 and set the parameter {_CONTENT_TYPE} to "base64", or use the binary extension, or send '
            "the picture alone to /classify"
        )
    written = deque[bytes]()
    for index, element in enumerate(elements):
        try:
            decoded = base64.b64decode(element, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise InvalidArgumentError(f"{owner} has an element {index} that is not base64") from None
        written.extend((_LENGTH.pack(len(decoded)), decoded))
    return b"".join(written)


def _flatten(data: list[Any], owner: str) -> list[Any]:
    """Return the elements of flat or nested lists, in row-major order."""
    for _ in range(_MOST_DIMENSIONS):
        if not data or not isinstance(data[0], list):
            return data
        if any(type(part) is not list or len(part) != len(data[0]) for part in data):
            raise InvalidArgumentError(f"{owner} has nested lists of different length; send a tensor")
        data = list(chain.from_iterable(data))
    raise InvalidArgumentError(
        f"{owner} has data nested in more than {_MOST_DIMENSIONS} lists; send a tensor"
    )


def _element_count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape[:_MOST_DIMENSIONS]:
        count *= side
    return count


def _elements(raw: bytes, datatype: str) -> list[Any]:
    """Return the elements of an output: numbers of FP32, texts of BYTES."""
    if datatype == "FP32":
        values: list[float] = np.frombuffer(raw, np.float32).tolist()
        return values
    texts = []
    start = 0
    while start < len(raw):
        (length,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size + length
        texts.append(raw[start - length : start].decode())
    return texts


def _binary_outputs(outputs: Sequence[RequestedOutput]) -> dict[str, bool]:
    return {
        output.name: _flag(output.parameters, _BINARY_OUTPUT, f"output {quote(output.name)}")
        for output in outputs
        if _BINARY_OUTPUT in output.parameters
    }


def _flag(parameters: Parameters, name: str, owner: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{owner} has {name} {quote(str(value))}; send true or false")
    return value


def _set_parameters(target: Any, parameters: Parameters, *, leave_out: tuple[str, ...]) -> None:
    for key, value in parameters.items():
        if key in leave_out:
            continue
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, int):
            target[key].int64_param = value
        elif isinstance(value, float):
            target[key].double_param = value
        else:
            target[key].string_param = value


def _plain_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    plain = {}
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        plain[key] = getattr(parameter, kind) if kind else None
    return plain
