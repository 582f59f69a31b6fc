"""What a message may hold is counted before it is parsed, and as the parser would count it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.field_count import (
    MAX_FIELDS,
    UNCOUNTED_BYTES,
    MalformedError,
    check_field_count,
)
from tests.support.costly_messages import field, varint
from tests.support.strategies import classify_requests, infer_requests

if TYPE_CHECKING:
    from google.protobuf.message import Message

INFER, CLASSIFY = pb.ModelInferRequest.DESCRIPTOR, classifier_pb2.ClassifyRequest.DESCRIPTOR
# The pixels of a sound message: one field.
PADDING = field(7, bytes(3 * MAX_FIELDS))
CLASSIFY_PADDING = field(4, bytes(3 * MAX_FIELDS))


def inputs(body: bytes) -> bytes:
    return field(5, body)


def contents(body: bytes) -> bytes:
    return inputs(field(5, body))


COUNTED = {
    "inputs": field(5, b"") * (MAX_FIELDS - 1),
    "names": field(1, b"") * (MAX_FIELDS - 1),
    "numbers nobody knows": b"\x70\x00" * (MAX_FIELDS - 1),
    "doubles nobody knows": (varint(15 << 3 | 1) + bytes(8)) * (MAX_FIELDS - 1),
    "floats nobody knows": (varint(15 << 3 | 5) + bytes(4)) * (MAX_FIELDS - 1),
    "packed dimensions": inputs(field(3, bytes(MAX_FIELDS - 3))),
    "single dimensions": inputs(b"\x18\x01" * (MAX_FIELDS - 2)),
    "keys of parameters": field(4, field(1, b"")) * ((MAX_FIELDS - 1) // 2) + field(1, b""),
    "packed booleans": contents(field(1, bytes(MAX_FIELDS - 4))),
    "packed 64-bit integers": contents(field(3, bytes(MAX_FIELDS - 4))),
    "single pixels": contents(b"\x20\x01" * (MAX_FIELDS - 3)),
    "BYTES elements": contents(field(8, b"") * (MAX_FIELDS - 3)),
}


@pytest.mark.parametrize("most", COUNTED.values(), ids=COUNTED.keys())
def test_fields_are_accepted_up_to_the_limit(most: bytes) -> None:
    check_field_count(INFER, PADDING + most)
    pb.ModelInferRequest.FromString(PADDING + most)
    with pytest.raises(InvalidArgumentError, match=f"more than {MAX_FIELDS} fields and elements"):
        check_field_count(INFER, PADDING + most + field(1, b""))


NOT_COUNTED = {
    "raw pixels": field(7, b"\xff" * 10**6),
    "packed pixels": contents(field(4, bytes(10**6))),
    "packed floats": contents(field(6, bytes(4 * 10**6))),
    "an image": contents(field(8, b"\xff" * 10**6)),
    "a name": field(1, b"x" * 10**6),
    "bytes that nobody knows": field(15, b"\xff" * 10**6),
}


@pytest.mark.parametrize("content", NOT_COUNTED.values(), ids=NOT_COUNTED.keys())
def test_fields_of_any_length_count_once(content: bytes) -> None:
    check_field_count(INFER, content)
    pb.ModelInferRequest.FromString(content)


def test_typed_pixels_are_counted_separately() -> None:
    assert check_field_count(INFER, PADDING) == 0
    assert check_field_count(INFER, 2 * contents(field(4, b"\xff\x01" * 10**6))) == 4 * 10**6


@pytest.mark.parametrize("smallest", [b"\x2a\x00", inputs(b"\x22\x00"), b"\x70\x00"], ids=bytes.hex)
def test_uncounted_message_cannot_exceed_the_limit(smallest: bytes) -> None:
    check_field_count(INFER, smallest * (UNCOUNTED_BYTES // len(smallest)))


MALFORMED = {
    "a length beyond the end": b"\x0a\x05abc",
    "an input beyond its request": b"\x2a\x02\x18",
    "a name beyond its input": inputs(b"\x0a\x05abc"),
    "a number without end": b"\x70" + b"\xff" * 11,
    "a tag beyond 32 bits": varint(2**32 + 8) + b"\x00",
    "a tag and nothing": b"\x0a",
    "half a float": varint(15 << 3 | 5) + bytes(3),
    "a group": b"\x73\x74",
    "a layout that there is not": b"\x77",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bytes_are_not_parsed(content: bytes) -> None:
    with pytest.raises(MalformedError):
        check_field_count(INFER, PADDING + content)


@given(message=infer_requests())
def test_valid_requests_pass(message: Message) -> None:
    check_field_count(INFER, PADDING + message.SerializeToString())


@given(message=classify_requests)
def test_valid_classifications_pass(message: Message) -> None:
    check_field_count(CLASSIFY, CLASSIFY_PADDING + message.SerializeToString())
