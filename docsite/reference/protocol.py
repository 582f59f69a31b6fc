"""Describes the services and messages, from the comments in protos/."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped]

from docsite.reference.markdown import code, head, one_line, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

PROTOS = Path(__file__).parents[2] / "protos"
_TEXT = """\
Generated from the comments in `protos/`, from which clients in any language can be made. The
same calls over HTTP are in [HTTP beside gRPC](../http.md). Standard services beside these:
`grpc.health.v1.Health` and server reflection."""

# Field numbers in descriptor.proto: of a file its messages and services, of a message its fields and nested
# messages, of a service its methods.
_MESSAGES, _SERVICES, _FIELDS, _NESTED, _METHODS = 4, 6, 2, 3, 2


def page() -> str:
    """Return the page."""
    parts = [head("Protocol", _TEXT)]
    for file in _files():
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        parts += _services(file, comments)
        parts.append(f"## Messages of {file.package}\n")
        for name, message, path in _messages(file):
            parts.append(f"### {name}\n\n{one_line(comments.get(path, ''))}\n")
            if message.field:
                parts.append(_fields(message, path, comments))
    return "\n".join(parts)


def _files() -> list[FileDescriptorProto]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        names = sorted(path.name for path in PROTOS.glob("*.proto"))
        flags = ["protoc", f"-I{PROTOS}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*flags, *names]) != 0:
            raise RuntimeError("protoc could not read protos/")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def _services(file: FileDescriptorProto, comments: dict[tuple[int, ...], str]) -> Iterator[str]:
    for index, service in enumerate(file.service):
        path = (_SERVICES, index)
        yield f"## {file.package}.{service.name}\n\n{one_line(comments.get(path, ''))}\n"
        rows = [
            (
                code(method.name),
                _type(method.input_type, file, is_stream=method.client_streaming),
                _type(method.output_type, file, is_stream=method.server_streaming),
                comments.get((*path, _METHODS, number), ""),
            )
            for number, method in enumerate(service.method)
        ]
        yield table(("call", "takes", "returns", "meaning"), rows)


def _type(name: str, file: FileDescriptorProto, *, is_stream: bool) -> str:
    return f"{'stream of ' if is_stream else ''}{code(name.removeprefix(f'.{file.package}.'))}"


def _messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto, tuple[int, ...]]]:
    for index, message in enumerate(file.message_type):
        yield from _with_nested(message.name, message, (_MESSAGES, index))


def _with_nested(
    name: str, message: DescriptorProto, path: tuple[int, ...]
) -> Iterator[tuple[str, DescriptorProto, tuple[int, ...]]]:
    yield name, message, path
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _with_nested(f"{name}.{nested.name}", nested, (*path, _NESTED, index))


def _fields(message: DescriptorProto, path: tuple[int, ...], comments: dict[tuple[int, ...], str]) -> str:
    rows = [
        (
            str(field.number),
            code(field.name),
            _field_type(message, field),
            comments.get((*path, _FIELDS, index), ""),
        )
        for index, field in enumerate(message.field)
    ]
    return table(("number", "field", "type", "meaning"), rows)


def _field_type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{nested.name}"):
            key, value = (_plain_type(each) for each in nested.field)
            return code(f"map<{key}, {value}>")
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    return code(("repeated " if repeated else "") + _plain_type(field))


def _plain_type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return field.type_name.rpartition(".")[2]
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
