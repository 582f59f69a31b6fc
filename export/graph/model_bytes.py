"""Puts the bytes of an ONNX file together around weights that are not in its message.

Protobuf holds a message twice while it is serialised, and each check of a file serialises it again. So the
message is kept without its large weights, and these are copied once, from where they are into the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from foldserve.export.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from google.protobuf.message import Message

_MOST_BYTES = 2**31 - 1  # no protobuf message is read above this
# "Length-delimited": the type that protobuf gives strings, bytes and messages in the tag before a field.
_LENGTH_DELIMITED = 2


def parts_with_weights(
    model_proto: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol]
) -> Sequence[bytes | memoryview]:
    """Return the bytes of ``model_proto`` in parts, the initializers named in ``weights`` with these values.

    Put together, they are the bytes that protobuf's own deterministic serialisation gives for the complete
    message: fields in the order of their numbers (https://protobuf.dev/programming-guides/encoding).

    Raises:
        TraceError: a weight does not have the size that its type and shape say, or the file is too large.
    """
    graph = model_proto.graph
    heads = [_tensor_head(tensor, weights) for tensor in graph.initializer]
    number = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
    before, after = _fields(graph, lambda field: field < number), _fields(graph, lambda field: field > number)
    tensors_size = sum(len(_opened(number, len(head) + size)) + len(head) + size for head, size in heads)
    graph_size = len(before) + tensors_size + len(after)
    if graph_size > _MOST_BYTES:
        raise TraceError(
            f"the exported file would have {graph_size / 2**30:.1f} GiB; an ONNX file holds at most 2 GiB"
        )
    graph_number = onnx.ModelProto.GRAPH_FIELD_NUMBER
    parts: list[bytes | memoryview] = [
        _fields(model_proto, lambda field: field < graph_number),
        _opened(graph_number, graph_size),
        before,
    ]
    for tensor, (head, size) in zip(graph.initializer, heads, strict=True):
        parts += [_opened(number, len(head) + size), head]
        if size:
            parts.append(_raw(weights[tensor.name]))
    return [*parts, after, _fields(model_proto, lambda field: field > graph_number)]


def _tensor_head(tensor: onnx.TensorProto, weights: Mapping[str, ir.TensorProtocol]) -> tuple[bytes, int]:
    """Return a tensor's bytes up to its values, and the size of the values that follow."""
    head = tensor.SerializeToString(deterministic=True)
    if tensor.name not in weights:
        return head, 0
    size = weights[tensor.name].nbytes
    return head + _opened(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, size), size


def _raw(tensor: ir.TensorProtocol) -> memoryview | bytes:
    array = np.ascontiguousarray(tensor.numpy())
    raw: memoryview | bytes = array.reshape(-1).view(np.uint8).data
    if len(raw) != tensor.nbytes:  # several numbers share a byte
        raw = tensor.tobytes()
    if len(raw) != tensor.nbytes:
        raise TraceError(
            f"{tensor.name} holds {len(raw)} bytes; its type and shape say {tensor.nbytes}; this is a bug in "
            "foldserve, please report it"
        )
    return raw


def _fields(message: Message, is_wanted: Callable[[int], bool]) -> bytes:
    """Serialise the fields of ``message`` whose numbers are wanted."""
    part: Any = type(message)()
    for field, value in message.ListFields():
        if not is_wanted(field.number):
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(part, field.name, value)
        elif hasattr(value, "extend"):
            getattr(part, field.name).extend(value)
        else:
            getattr(part, field.name).CopyFrom(value)
    return bytes(part.SerializeToString(deterministic=True))


def _opened(field: int, size: int) -> bytes:
    """Return the tag and length that come before ``size`` bytes of a field."""
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
