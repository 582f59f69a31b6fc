"""Serialises outputs as ModelInferResponse messages.

A response is written in two halves. The head names the model, its version and its file's hash and describes
the outputs; it is the same for all requests with the same number of rows, and is cached. The tail holds the
id and the values. The concatenated bytes of two messages are one message with the fields of both:
protobuf.dev/programming-guides/encoding, "Last One Wins".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from foldserve.artifact.classification import top_indices
from foldserve.artifact.format import OUTPUTS
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.serving.batching.request import Arrays

# The response parameter that identifies the file: a version's number may be reused.
SHA256_PARAMETER = "model_sha256"
# Triton reserves parameters with this prefix, in requests and in responses.
TRITON_PREFIX = "triton_"
# Heads cached per model, by row count and outputs: enough for all that recur.
_KEPT_HEADS = 1024


class Output(NamedTuple):
    """A requested output: all its values, or the ``top_k`` highest as text if that is not 0."""

    name: str
    top_k: int = 0


ALL_OUTPUTS = tuple(Output(name) for name in OUTPUTS)


class ResponseHeads:
    """Builds and caches the heads of one version's responses; ``labels`` are its class names, in order."""

    def __init__(self, name: str, version: str, labels: Sequence[str], sha256: str) -> None:
        self._name = name
        self._version = version
        self._sha256 = sha256
        self.labels = labels
        self._kept: dict[tuple[int, tuple[Output, ...]], bytes] = {}

    def get(self, row_count: int, outputs: tuple[Output, ...]) -> bytes:
        """Return the serialised head of a response of ``row_count`` rows."""
        head = self._kept.get((row_count, outputs))
        if head is None:
            head = self._build(row_count, outputs).SerializeToString()
            if len(self._kept) < _KEPT_HEADS:
                self._kept[row_count, outputs] = head
        return head

    def _build(self, row_count: int, outputs: tuple[Output, ...]) -> pb.ModelInferResponse:
        head = pb.ModelInferResponse(model_name=self._name, model_version=self._version)
        head.parameters[SHA256_PARAMETER].string_param = self._sha256
        for output in outputs:
            if output.top_k:
                shape = (row_count, min(output.top_k, len(self.labels)))
                head.outputs.add(name=output.name, datatype="BYTES", shape=shape)
            else:
                head.outputs.add(name=output.name, datatype="FP32", shape=(row_count, len(self.labels)))
        return head


def write_infer_response(
    heads: ResponseHeads,
    outputs: tuple[Output, ...],
    request_id: str,
    parameters: Mapping[str, pb.InferParameter] | None,
    arrays: Arrays,
) -> bytes:
    """Return the serialised response; ``arrays`` are float32 [N, K], in the order of OUTPUTS."""
    if outputs is ALL_OUTPUTS:
        contents = [array.tobytes() for array in arrays]
    else:
        contents = [_content(output, arrays, heads.labels) for output in outputs]
    tail = pb.ModelInferResponse(id=request_id, raw_output_contents=contents)
    if parameters:
        for key, parameter in parameters.items():
            if key != SHA256_PARAMETER and not key.startswith(TRITON_PREFIX):  # set by the server
                tail.parameters[key].CopyFrom(parameter)
    return heads.get(len(arrays[0]), outputs) + tail.SerializeToString()


def _content(output: Output, arrays: Arrays, labels: Sequence[str]) -> bytes:
    array = arrays[OUTPUTS.index(output.name)]
    if not output.top_k:
        return array.tobytes()
    return b"".join(_classification(row, output.top_k, labels) for row in array)


def _classification(row: NDArray[np.float32], top_k: int, labels: Sequence[str]) -> bytes:
    """Return the ``top_k`` highest values of a row in Triton's form: BYTES elements "value:index:label"."""
    elements = (f"{row[index]:f}:{index}:{labels[index]}".encode() for index in top_indices(row, top_k))
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
