"""Reads an ONNX file from disk and finds its image input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from foldserve.export.errors import SourceError, first_line
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.graph.serialize import with_inputs_for
from foldserve.export.graph.weights_apart import Weights, set_weights_apart
from foldserve.export.sources.file_kind import refuse_other_kinds
from foldserve.export.sources.source import sha256_of
from foldserve.export.sources.weight_size import check_file_size

if TYPE_CHECKING:
    from pathlib import Path

_EXPECTED = "expected one image, FLOAT or UINT8 [batch, channels, height, width]"


@dataclass(frozen=True)
class OnnxFile:
    """A file as read from disk.

    Attributes:
        path: where it was read.
        content: its bytes, without external data; None if the message was changed.
        sha256: SHA-256 of the bytes.
        model_proto: the model, without ``weights``.
        weights: large weights, also those of external data, by name.
        external_sha256: SHA-256 of each file of external data, by name.
    """

    path: Path
    content: ModelFile | None
    sha256: str
    model_proto: onnx.ModelProto
    weights: Weights
    external_sha256: dict[str, str]

    @property
    def opset(self) -> int:
        """The version of ONNX's own operator set that the file uses."""
        imports = self.model_proto.opset_import
        return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 1)

    @property
    def producer(self) -> str:
        """Name and version of the tool that wrote the file."""
        return f"{self.model_proto.producer_name} {self.model_proto.producer_version}".strip() or "unknown"


def read_onnx(path: Path) -> OnnxFile:
    """Read ``path`` and the external data beside it.

    Raises:
        SourceError: it is not an ONNX model, is damaged or invalid, or its external data is missing.
    """
    refuse_other_kinds(path)
    try:
        content = path.read_bytes()
        stored, sha256 = ModelFile(content), sha256_of(content)
        given = onnx.load_model_from_string(content)
        del content
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise SourceError(f"{path} is not an ONNX model, or it is damaged or cut short") from error
    if not given.graph.node:
        raise SourceError(f"{path} is not an ONNX model, or it computes nothing")
    check_file_size(given, str(path))
    try:
        model_proto, weights, external = _load_weights(given, path)
        del given
        onnx.checker.check_model(with_inputs_for(model_proto, weights))
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: above protobuf's 2 GiB
        raise SourceError(f"{path} is not valid ONNX: {first_line(error)}") from error
    return OnnxFile(path, stored, sha256, model_proto, weights, external)


def find_image(file: OnnxFile) -> onnx.ValueInfoProto:
    """Return the only input. Weights, which old files list as inputs too, do not count.

    Raises:
        SourceError: its inputs are not exactly one image.
    """
    graph = file.model_proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or not _is_image(inputs[0]):
        raise SourceError(f"{file.path} takes {', '.join(map(_shown, inputs)) or 'nothing'}; {_EXPECTED}")
    return inputs[0]


def _is_image(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.elem_type in (TensorProto.FLOAT, TensorProto.UINT8) and len(tensor.shape.dim) == 4


def _external_names(model_proto: onnx.ModelProto) -> list[str]:
    """Return the names of the files that weights are in."""
    return sorted(
        {
            entry.value
            for tensor in model_proto.graph.initializer
            if tensor.data_location == TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def _load_weights(
    model_proto: onnx.ModelProto, path: Path
) -> tuple[onnx.ModelProto, Weights, dict[str, str]]:
    """Load external data; return the message without large weights, these, and the files' SHA-256."""
    names = _external_names(model_proto)
    try:
        model_proto, weights = set_weights_apart(model_proto, path.parent)
        onnx.load_external_data_for_model(model_proto, str(path.parent))
        hashes = {}
        for name in names:  # each was found to lie in the folder
            with (path.parent / name).open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if not names:
            raise
        raise SourceError(
            f"{path} stores its weights in {', '.join(names)} beside it, which cannot be read: "
            f"{first_line(error)}"
        ) from error
    return model_proto, weights, hashes


def _shown(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sides = [
        str(side.dim_value) if side.HasField("dim_value") else side.dim_param or "?"
        for side in tensor.shape.dim
    ]
    return f"{value.name} {TensorProto.DataType.Name(tensor.elem_type)} [{', '.join(sides)}]"
