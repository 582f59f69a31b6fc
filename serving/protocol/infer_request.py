"""Reads a request's images into numpy, checked against the model's input, and the requested outputs.

Every refusal says what was given, what is expected and what to do. Callers' texts are truncated and escaped
in messages, because a status travels in HTTP/2 headers, which are small.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from foldserve.serving.errors import InvalidArgumentError, UnimplementedError
from foldserve.serving.protocol.encoded_images import check_raw_alone, read_encoded
from foldserve.serving.protocol.field_count import read_varint
from foldserve.serving.protocol.image_count import MAX_IMAGES, check_image_count
from foldserve.serving.protocol.infer_response import TRITON_PREFIX, Output
from foldserve.serving.protocol.parameters import parameter_text
from foldserve.text import join_names, quote, shape_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from foldserve.artifact.format import TensorSpec
    from foldserve.serving.pb import open_inference_pb2 as pb

# Fields for typed elements by datatype. FP16 and BF16 are sent as raw bytes only.
_TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# More than anybody sets by hand; each one is read, and returned in the response.
_MAX_PARAMETERS = 64
_EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"


def read_images(
    request: pb.ModelInferRequest, spec: TensorSpec, *, max_images: int = MAX_IMAGES
) -> NDArray[np.uint8] | list[bytes]:
    """Return the only input of ``request``: uint8 [N, C, H, W], or N encoded images if it is BYTES.

    Raw contents are returned as a view of the message. ``spec`` is the model's input: UINT8 [-1, C, H, W].

    Raises:
        InvalidArgumentError: the request does not have exactly that input with exactly its elements, or has
            more than ``max_images`` images, or more than MAX_ENCODED_IMAGES encoded ones.
        UnimplementedError: the input is in shared memory.
    """
    # Every access to a message creates an object, and every request passes here: each field is read once.
    tensor = _find_input(request, spec)
    if tensor.datatype != spec.datatype:
        if tensor.datatype == "BYTES":
            return read_encoded(request, tensor)
        raise InvalidArgumentError(_datatype_message(tensor, spec))
    shape = tuple(tensor.shape[:])
    if len(shape) != 4 or shape[1:] != spec.shape[1:] or shape[0] < 1:
        raise InvalidArgumentError(_shape_message(shape, spec))
    buffers = request.raw_input_contents[:]
    if not buffers:
        return _read_typed(tensor, shape, max_images)
    check_raw_alone(tensor, len(buffers))
    _check_count(len(buffers[0]), "bytes in raw_input_contents", shape, spec)
    check_image_count(shape[0], max_images)
    return np.ndarray(shape, np.uint8, buffers[0])


def read_outputs(request: pb.ModelInferRequest, known: Sequence[str]) -> tuple[Output, ...]:
    """Return the outputs that ``request`` names, in its order.

    Raises:
        InvalidArgumentError: the model does not have an output, one is named twice, or a classification is
            invalid.
        UnimplementedError: an output is requested in shared memory.
    """
    outputs = tuple(_read_output(output, known) for output in request.outputs[: len(known) + 1])
    if len({output.name for output in outputs}) < len(outputs):
        names = [output.name for output in outputs]
        raise InvalidArgumentError(f"outputs {join_names(names)} include one twice; name each once")
    return outputs


def check_parameter_count(parameters: Mapping[str, pb.InferParameter], owner: str) -> None:
    """Raise InvalidArgumentError if there are more than 64 parameters."""
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidArgumentError(
            f"{owner} has {len(parameters)} parameters; send at most {_MAX_PARAMETERS}"
        )


def check_triton_parameters(parameters: Mapping[str, pb.InferParameter]) -> None:
    """Refuse reserved parameters as Triton does.

    The only one allowed requests what is always done here: each request of a stream has exactly one answer,
    which is marked as the last.

    Raises:
        InvalidArgumentError: another name is reserved, or the value of the allowed one is not a bool.
    """
    for key in parameters:
        if not key.startswith(TRITON_PREFIX):
            continue
        if key != _EMPTY_FINAL_RESPONSE:
            raise InvalidArgumentError(
                f"parameter {quote(key)} is reserved: of the names that begin with '{TRITON_PREFIX}' only "
                f"'{_EMPTY_FINAL_RESPONSE}' is allowed; choose another name"
            )
        if parameters[key].WhichOneof("parameter_choice") != "bool_param":
            raise InvalidArgumentError(f"parameter '{key}' is not a bool; send it as a bool_param")


def _read_output(output: pb.ModelInferRequest.InferRequestedOutputTensor, known: Sequence[str]) -> Output:
    if output.name not in known:
        raise InvalidArgumentError(
            f"the model has no output {quote(output.name)}; its outputs are {join_names(known)}"
        )
    if not output.parameters:
        return Output(output.name)
    owner = f"output '{output.name}'"
    _check_parameters(output.parameters, owner)
    if "classification" not in output.parameters:
        return Output(output.name)
    parameter = output.parameters["classification"]
    kind = parameter.WhichOneof("parameter_choice")
    top_k = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else 0
    if top_k < 1:
        raise InvalidArgumentError(
            f"{owner} has classification {parameter_text(parameter)}; send the number of classes "
            "wanted as an int64_param of at least 1"
        )
    return Output(output.name, top_k)


def _find_input(request: pb.ModelInferRequest, spec: TensorSpec) -> pb.ModelInferRequest.InferInputTensor:
    inputs = request.inputs
    if len(inputs) == 1:
        tensor = inputs[0]
        if tensor.name == spec.name:
            if tensor.parameters:
                _check_parameters(tensor.parameters, f"input '{spec.name}'")
            return tensor
    if not request.inputs:
        raise InvalidArgumentError(f"the request has no inputs; send {_described(spec)}")
    unknown = [tensor.name for tensor in request.inputs if tensor.name != spec.name]
    if unknown:
        raise InvalidArgumentError(
            f"the model has no input {join_names(unknown)}; send exactly {_described(spec)}"
        )
    raise InvalidArgumentError(f"input '{spec.name}' is sent {len(request.inputs)} times; send it once")


def _datatype_message(tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec) -> str:
    advice = (
        "send raw 0..255 pixels, because normalisation (mean, std) is inside the model"
        if tensor.datatype in ("FP16", "BF16", "FP32", "FP64")
        else f"convert the pixels to {spec.datatype}"
    )
    return (
        f"input '{spec.name}' has datatype {quote(tensor.datatype)}; the model takes {spec.datatype}: "
        f"{advice}"
    )


def _shape_message(shape: tuple[int, ...], spec: TensorSpec) -> str:
    channels, height, width = spec.shape[1:]
    image, channels_last = (channels, height, width), (height, width, channels)
    if shape == image or (channels == 1 and shape == (height, width)):
        advice = f"the batch dimension is missing: send {shape_text((1, *image))} for one image"
    elif shape == channels_last:
        advice = (
            "the batch dimension is missing and the channels come last: send "
            f"pixels.transpose(2, 0, 1)[None], {shape_text((1, *image))}"
        )
    elif shape[1:] == channels_last:
        advice = f"channels come first: send pixels.transpose(0, 3, 1, 2), {shape_text((shape[0], *image))}"
    elif shape[1:] == image:
        advice = "N is the number of images and must be at least 1"
    elif len(shape) == 4 and shape[1] == channels and min(shape) >= 1:
        advice = (
            f"resize the images to {height}x{width} pixels as ModelMetadata's property 'resize' describes"
        )
    elif len(shape) == 4 and min(shape) >= 1:
        colours = "grey (1 channel)" if channels == 1 else "RGB (3 channels)"
        advice = f"send {colours} images of {height}x{width} pixels"
    else:
        advice = "send a batch of N images, with N at least 1"
    return f"input '{spec.name}' has shape {shape_text(shape)}; the model takes {_spec_text(spec)}: {advice}"


def _read_typed(
    tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], max_images: int
) -> NDArray[np.uint8]:
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    expected = _TYPED_FIELDS[tensor.datatype]
    if filled != [expected]:
        given = f"its elements in {' and '.join(filled)}" if filled else "no elements"
        raise InvalidArgumentError(
            f"input '{tensor.name}' has {given}; send {tensor.datatype} elements in contents.{expected} "
            "or, faster, as bytes in raw_input_contents"
        )
    elements = tensor.contents.uint_contents
    _check_count(len(elements), f"elements in contents.{expected}", shape, tensor)
    check_image_count(shape[0], max_images)
    # Reading the serialised bytes takes a tenth of the time of reading the elements. As a varint, 0..127 is
    # one byte, 128..255 is the same byte followed by 1, and larger values differ from both.
    tensor.contents.DiscardUnknownFields()  # one field is left: tag, length, elements
    written = tensor.contents.SerializeToString()
    values = np.frombuffer(written, np.uint8, offset=read_varint(written, 1)[1])
    is_behind = np.zeros(len(values), bool)
    np.greater(values[:-1], 127, out=is_behind[1:])
    is_wrong = values[is_behind] != 1
    if is_wrong.any():
        position = np.flatnonzero(is_behind)[np.argmax(is_wrong)]
        index = np.count_nonzero(~is_behind[:position]) - 1
        raise InvalidArgumentError(
            f"input '{tensor.name}' has {elements[index]} at element {index}; UINT8 pixels are 0..255"
        )
    return values[~is_behind].reshape(shape)


def _check_count(
    given: int, what: str, shape: tuple[int, ...], tensor: TensorSpec | pb.ModelInferRequest.InferInputTensor
) -> None:
    expected = math.prod(shape)  # in Python's integers: a shape of 2^62 rows cannot overflow
    if given != expected:
        raise InvalidArgumentError(
            f"input '{tensor.name}' has {given} {what}, which is too "
            f"{'few' if given < expected else 'many'}: its shape "
            f"{shape_text(shape)} needs {expected}, one per pixel and channel"
        )


def _check_parameters(parameters: Mapping[str, pb.InferParameter], owner: str) -> None:
    check_parameter_count(parameters, owner)
    if any(key.startswith("shared_memory") for key in parameters):
        raise UnimplementedError(
            f"{owner} requests shared memory, which is not supported; send tensors in the messages"
        )


def _described(spec: TensorSpec) -> str:
    return f"'{spec.name}' ({spec.datatype} {_spec_text(spec)})"


def _spec_text(spec: TensorSpec) -> str:
    return f"[N, {', '.join(str(side) for side in spec.shape[1:])}]"
