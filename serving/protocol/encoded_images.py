"""Reads BYTES inputs: encoded images instead of pixels."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.protocol.image_count import MAX_ENCODED_IMAGES, check_image_count
from foldserve.text import shape_text

if TYPE_CHECKING:
    from foldserve.serving.pb import open_inference_pb2 as pb

_LENGTH_BYTES = 4


def read_encoded(request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor) -> list[bytes]:
    """Return the encoded images of ``tensor``, the request's only input, whose datatype is BYTES.

    Raises:
        InvalidArgumentError: its shape is not [N] or [N, 1], it does not have exactly N elements, or it has
            more than MAX_ENCODED_IMAGES.
    """
    shape = tuple(tensor.shape)
    if not 1 <= len(shape) <= 2 or shape[0] < 1 or shape[1:] not in ((), (1,)):
        raise InvalidArgumentError(
            f"input '{tensor.name}' of datatype BYTES has shape {shape_text(shape)}; encoded images need "
            "shape [N] or [N, 1], with N at least 1"
        )
    elements = _read_elements(request, tensor, MAX_ENCODED_IMAGES + 1)
    check_image_count(len(elements), MAX_ENCODED_IMAGES)
    expected = math.prod(shape)
    if len(elements) != expected:
        raise InvalidArgumentError(
            f"input '{tensor.name}' has {len(elements)} encoded images, which is too "
            f"{'few' if len(elements) < expected else 'many'}: its shape {shape_text(shape)} needs {expected}"
        )
    return elements


def _read_elements(
    request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor, most: int
) -> list[bytes]:
    """Return at most the first ``most`` elements of ``tensor``."""
    if not request.raw_input_contents:
        filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
        if filled != ["bytes_contents"]:
            given = f"its elements in {' and '.join(filled)}" if filled else "no elements"
            raise InvalidArgumentError(
                f"input '{tensor.name}' has {given}; send BYTES elements in contents.bytes_contents or in "
                "raw_input_contents, each preceded by its length"
            )
        return tensor.contents.bytes_contents[:most]
    check_raw_alone(tensor, len(request.raw_input_contents))
    return _split(request.raw_input_contents[0], tensor.name, most)


def check_raw_alone(tensor: pb.ModelInferRequest.InferInputTensor, buffer_count: int) -> None:
    """Check that a request with raw contents has its one input in one buffer, and not in typed contents too.

    Raises:
        InvalidArgumentError: it has several buffers, or typed contents as well.
    """
    if tensor.HasField("contents"):
        raise InvalidArgumentError(
            f"input '{tensor.name}' is sent twice, in raw_input_contents and in its own contents; send one "
            "of them"
        )
    if buffer_count != 1:
        raise InvalidArgumentError(
            f"raw_input_contents has {buffer_count} buffers for 1 input; send one buffer per input"
        )


def _split(raw: bytes, name: str, most: int) -> list[bytes]:
    """Return at most ``most`` elements of ``raw``, each preceded by its length (uint32, little-endian)."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw) and len(elements) < most:
        start = position + _LENGTH_BYTES
        length = struct.unpack_from("<I", raw, position)[0] if start <= len(raw) else 0
        if start + length > len(raw):
            raise InvalidArgumentError(
                f"input '{name}': element {len(elements)} at byte {position} of {len(raw)} claims {length} "
                "bytes, which exceeds the buffer; send each element as its length in four bytes, "
                "little-endian, followed by its bytes"
            )
        elements.append(raw[start : start + length])
        position = start + length
    return elements
