"""Turns protobuf messages into what JSON can hold, with the field names of the .proto.

protobuf's own json_format writes 64-bit integers as text; the Open Inference Protocol's REST API, and the
clients written for it, have them as numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message


def to_plain(message: Message) -> dict[str, Any]:
    """Return a message as dicts, lists, numbers and texts.

    Scalars, lists and maps are there even if they are empty; messages and members of a oneof only if set.
    """
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of_map = field.message_type.fields_by_name["value"]
            plain[field.name] = {str(key): _value(value[key], of_map) for key in value}
        elif field.is_repeated:
            plain[field.name] = [_value(item, field) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            plain[field.name] = _value(value, field)
    return plain


def _value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
