"""Messages that cost a server far more than their bytes where it goes through them; by name."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

INFER, CLASSIFY = "/inference.GRPCInferenceService/ModelInfer", "/foldserve.v1.Classifier/Classify"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
CLASSIFY_STREAM = "/foldserve.v1.Classifier/ClassifyStream"
SIDE = 28  # of the square grey images that the model takes


class Costly(NamedTuple):
    """Where a message goes and what makes it, of so many bytes."""

    path: str
    make: Callable[[int], bytes]


def varint(number: int) -> bytes:
    """Return ``number`` as protobuf writes it."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def repeated(unit: bytes) -> Callable[[int], bytes]:
    """Return what fills a message with ``unit``."""
    return lambda size: unit * (size // len(unit))


def _request(
    body: bytes, *, shape: bytes = b"", datatype: bytes = b"UINT8", raw: bytes | None = None
) -> bytes:
    """Return a ModelInferRequest whose one input has ``body`` beside name, datatype and shape."""
    tensor = field(1, b"image") + field(2, datatype) + field(3, shape) + body
    return field(1, b"tiny") + field(5, tensor) + (b"" if raw is None else field(7, raw))


def _in_input(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: _request(repeated(unit)(size - 100))


def _typed(number: int, unit: bytes) -> Callable[[int], bytes]:
    """Return what fills one typed field with packed elements, for images of which there are too many."""

    def make(size: int) -> bytes:
        elements = repeated(unit)(size - 200)
        rows = len(elements) // len(unit) // SIDE**2
        elements = elements[: rows * SIDE**2 * len(unit)]
        return _request(field(5, field(number, elements)), shape=varint(rows) + bytes([1, SIDE, SIDE]))

    return make


def _distinct_parameters(size: int) -> bytes:
    return b"".join(field(4, field(1, b"%07d" % index)) for index in range(size // 11))


def _tiny_images(size: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "png")
    return field(1, b"tiny") + repeated(field(4, file.getvalue()))(size - 100)


def _encoded(unit: bytes, shape: bytes) -> Callable[[int], bytes]:
    return lambda size: _request(b"", shape=shape, datatype=b"BYTES", raw=repeated(unit)(size - 200))


def _long_parameter(size: int) -> bytes:
    """An output's classification, as a text of control characters."""
    value = field(2, field(3, b"\x01" * (size - 200)))
    output = field(1, b"logits") + field(2, field(1, b"classification") + value)
    return field(1, b"tiny") + field(6, output) + _request(b"")


MESSAGES = {
    "empty inputs": Costly(INFER, repeated(b"\x2a\x00")),
    "empty outputs": Costly(INFER, repeated(b"\x32\x00")),
    "empty raw contents": Costly(INFER, repeated(b"\x3a\x00")),
    "parameters": Costly(INFER, _distinct_parameters),
    "one parameter again": Costly(INFER, repeated(b"\x22\x00")),
    "a long parameter": Costly(INFER, _long_parameter),
    "a long name": Costly(INFER, lambda size: field(1, "\U0001f600".encode() * (size // 4))),
    "names": Costly(INFER, repeated(b"\x0a\x00")),
    "unknown fields": Costly(INFER, repeated(b"\x70\x00")),
    "unknown groups": Costly(INFER, repeated(b"\x73\x74")),
    "dimensions": Costly(INFER, lambda size: _request(b"", shape=b"\x01" * (size - 100))),
    "single dimensions": Costly(INFER, _in_input(b"\x18\x01")),
    "parameters of an input": Costly(INFER, _in_input(b"\x22\x00")),
    "contents again": Costly(INFER, _in_input(b"\x2a\x00")),
    "booleans": Costly(INFER, _typed(1, b"\x01")),
    "int32": Costly(INFER, _typed(2, b"\x01")),
    "int64": Costly(INFER, _typed(3, b"\x01")),
    "dark pixels": Costly(INFER, _typed(4, b"\x01")),
    "light pixels": Costly(INFER, _typed(4, b"\xff\x01")),
    "single pixels": Costly(INFER, lambda size: _request(field(5, repeated(b"\x20\x01")(size - 200)))),
    "uint64": Costly(INFER, _typed(5, b"\x01")),
    "float32": Costly(INFER, _typed(6, bytes(4))),
    "raw pixels": Costly(INFER, lambda size: _request(b"", shape=b"\x01\x01\x1c\x1c", raw=bytes(size - 200))),
    "empty BYTES elements": Costly(
        INFER,
        lambda size: _request(field(5, repeated(b"\x42\x00")(size - 200)), shape=b"\x01", datatype=b"BYTES"),
    ),
    "empty raw BYTES elements": Costly(INFER, _encoded(bytes(4), b"\x01")),
    "as many as the shape says": Costly(
        INFER, lambda size: _encoded(bytes(4), varint((size - 200) // 4))(size)
    ),
    "empty inputs in a stream": Costly(INFER_STREAM, repeated(b"\x2a\x00")),
    "dimensions in a stream": Costly(INFER_STREAM, lambda size: _request(b"", shape=b"\x01" * (size - 100))),
    "empty images": Costly(CLASSIFY, repeated(b"\x22\x00")),
    "tiny images": Costly(CLASSIFY, _tiny_images),
    "empty images in a stream": Costly(CLASSIFY_STREAM, repeated(b"\x22\x00")),
    "parameters of a load": Costly(
        "/inference.GRPCInferenceService/RepositoryModelLoad", repeated(b"\x1a\x00")
    ),
    "unknown fields of a question": Costly(
        "/inference.GRPCInferenceService/ServerLive", repeated(b"\x08\x00")
    ),
    "health": Costly("/grpc.health.v1.Health/Check", repeated(b"\x0a\x00")),
    "reflection": Costly(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", repeated(b"\x3a\x00")
    ),
}
