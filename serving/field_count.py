"""Counts the fields of a message before it is parsed, which makes an object of each.

32 MiB of empty submessages cost the parser 4 s of CPU and 1.4 GiB, with the interpreter's lock held all the
time. Walking along the lengths costs half a microsecond a field and ends at the limit; pixels and encoded
images are passed over in one step, so that a sound message of any size takes some ten. Pixels as typed
contents cost the parser 5 ms a MiB, with the lock held again, and are counted by themselves.
The encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from serving.errors import InvalidArgumentError
from serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

# Many times the encoded images that a request may have, and no more than the parser takes in 10 ms.
MAX_FIELDS = 32_768
# No message of so many bytes can have more: the smallest field is a tag and an empty value.
UNCOUNTED_BYTES = 2 * MAX_FIELDS
# How values are laid out: the low three bits of a tag.
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
# Both bounds are the parser's own.
_MAX_TAG, _MAX_VARINT_BYTES = 2**32 - 1, 10

# Stand for packed elements, of at least a byte each: of which each counts, and those that are pixels.
_PACKED: Final = "packed"
_PIXELS: Final = "pixels"
# What is behind the length of a field by its number; fields that are not there are passed over.
_Known: TypeAlias = "dict[int, _Known | str]"

_PIXEL_FIELD = pb.InferTensorContents.DESCRIPTOR.fields_by_name["uint_contents"]
# The parser copies such elements as they are.
_FIXED_TYPES = {
    *(FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE),
    *(FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_FIXED64),
    *(FieldDescriptor.TYPE_SFIXED32, FieldDescriptor.TYPE_SFIXED64),
}


class MalformedError(ValueError):
    """The bytes are no protobuf message."""


@dataclass(slots=True)
class _Count:
    fields: int = 0  # with packed elements
    pixel_bytes: int = 0


def check_field_count(descriptor: Descriptor, content: bytes) -> int:
    """Check that a message of the type ``descriptor`` has at most MAX_FIELDS fields and packed elements.

    Returns:
        The bytes of its packed UINT8 contents, which are not among them.

    Raises:
        InvalidArgumentError: it has more.
        MalformedError: it is no message.
    """
    count = _Count()
    try:
        _walk(content, 0, len(content), _known_fields(descriptor), count)
    except IndexError:
        raise MalformedError from None
    if count.fields > MAX_FIELDS:
        raise InvalidArgumentError(
            f"the message has more than {MAX_FIELDS} fields and elements, those of raw_input_contents and "
            "UINT8 contents not counted: send pixels in raw_input_contents, and fewer images at a time"
        )
    return count.pixel_bytes


def _walk(content: bytes, position: int, stop: int, known: _Known, count: _Count) -> None:
    """Count what is in content[position:stop], or as much of it as is too much."""
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
        else:  # a group, which no definition has had for fifteen years
            raise MalformedError
    if position > stop:
        raise MalformedError


def read_varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the number at ``position``, and where it ends."""
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
