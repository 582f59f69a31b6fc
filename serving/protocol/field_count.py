"""Counts the fields of a message before it is parsed, because parsing creates an object for each.

For 32 MiB of empty submessages the parser took 4 s of CPU and 1.4 GiB, and held the GIL all the time. Walking
along the lengths takes half a microsecond per field and ends at the limit. Pixels and encoded images are
skipped in one step, so that a valid message of any size takes some ten steps. Pixels as typed contents take
the parser 5 ms per MiB, again with the GIL, and are counted separately.
The encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

# Many times the encoded images that a request may have, and few enough to be parsed in 10 ms.
MAX_FIELDS = 32_768
# A message of this size cannot have more: the smallest field is a tag and an empty value.
UNCOUNTED_BYTES = 2 * MAX_FIELDS
# Wire types: the low three bits of a tag.
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
# Both limits are the parser's own.
_MAX_TAG, _MAX_VARINT_BYTES = 2**32 - 1, 10

# Packed elements of at least one byte: those that count as fields, and those that are pixels.
_PACKED: Final = "packed"
_PIXELS: Final = "pixels"
# Contents of length-delimited fields by field number; other fields are skipped.
_Known: TypeAlias = "dict[int, _Known | str]"

_PIXEL_FIELD = pb.InferTensorContents.DESCRIPTOR.fields_by_name["uint_contents"]
# The parser copies elements of these types as they are.
_FIXED_TYPES = {
    *(FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE),
    *(FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_FIXED64),
    *(FieldDescriptor.TYPE_SFIXED32, FieldDescriptor.TYPE_SFIXED64),
}


class MalformedError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass(slots=True)
class _Count:
    fields: int = 0  # including packed elements
    pixel_bytes: int = 0


def check_field_count(descriptor: Descriptor, content: bytes) -> int:
    """Check that a message of type ``descriptor`` has at most MAX_FIELDS fields and packed elements.

    Returns:
        The number of bytes of its packed UINT8 contents, which are not counted as fields.

    Raises:
        InvalidArgumentError: it has more.
        MalformedError: it is not a protobuf message.
    """
    count = _Count()
    try:
        _walk(content, 0, len(content), _known_fields(descriptor), count)
    except IndexError:
        raise MalformedError from None
    if count.fields > MAX_FIELDS:
        raise InvalidArgumentError(
            f"the message has more than {MAX_FIELDS} fields and elements, not counting raw_input_contents "
            "and UINT8 contents: send pixels in raw_input_contents, and fewer images per request"
        )
    return count.pixel_bytes


def _walk(content: bytes, position: int, stop: int, known: _Known, count: _Count) -> None:
    """Count the fields in content[position:stop]; stop at the limit."""
    while position < stop and count.fields <= MAX_FIELDS:
        count.fields += 1
        tag, position = read_varint(content, position)
        layout = tag & 7
        if tag > _MAX_TAG:
            raise MalformedError
        if layout == _DELIMITED:
            length, position = read_varint(content, position)
            end = position + length
            if end > stop:
                raise MalformedError
            inside = known.get(tag >> 3)
            if inside is _PACKED:
                count.fields += length
            elif inside is _PIXELS:
                count.pixel_bytes += length
            elif isinstance(inside, dict):
                _walk(content, position, end, inside, count)
            position = end
        elif layout == _VARINT:
            _, position = read_varint(content, position)
        elif layout in _FIXED_BYTES:
            position += _FIXED_BYTES[layout]
        else:  # a group, deprecated since proto2
            raise MalformedError
    if position > stop:
        raise MalformedError


def read_varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the varint at ``position`` and the position behind it."""
    byte = content[position]
    if byte < 128:
        return byte, position + 1
    number = byte & 127
    for index in range(1, _MAX_VARINT_BYTES):
        byte = content[position + index]
        number |= (byte & 127) << 7 * index
        if byte < 128:
            return number, position + index + 1
    raise MalformedError


@cache
def _known_fields(descriptor: Descriptor) -> _Known:
    known: _Known = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            known[field.number] = _known_fields(field.message_type)
        elif field.full_name == _PIXEL_FIELD.full_name:
            known[field.number] = _PIXELS
        elif field.is_packed and field.type not in _FIXED_TYPES:
            known[field.number] = _PACKED
    return known
