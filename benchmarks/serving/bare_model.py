"""Runs ModelInfer messages through one session, for the bare servers.

No checks, limits, deadlines or names looked up: this is the least that can answer the protocol, so that what
foldserve adds to it can be told.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.runtime.session import Session
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.infer_response import SHA256_PARAMETER

if TYPE_CHECKING:
    from collections.abc import Sequence

METHOD = "/inference.GRPCInferenceService/ModelInfer"
MAX_BATCH_REQUESTS = 32
_OUTPUTS = (LOGITS, PROBABILITIES)


class BareModel:
    """The model named on the command line: ``MODEL_FILE PORT_FILE THREADS``."""

    def __init__(self) -> None:
        model, port_file, threads = sys.argv[1:]
        self._port_file = Path(port_file)
        content = Path(model).read_bytes()
        self._sha256 = sha256(content).hexdigest()
        self._session = Session(content, device="cpu", intra_op_threads=int(threads))

    def announce(self, port: int) -> None:
        """Write the port to the file that the benchmark reads."""
        sibling = self._port_file.with_suffix(".writing")
        sibling.write_text(str(port))
        sibling.replace(self._port_file)

    def infer(self, requests: Sequence[pb.ModelInferRequest]) -> list[pb.ModelInferResponse]:
        """Answer every request from one run over all their rows."""
        return infer(self._session, requests)

    def answer(self, message: bytes) -> bytes:
        """Answer one serialised request with the bytes that foldserve would send."""
        (response,) = self.infer([pb.ModelInferRequest.FromString(message)])
        response.parameters[SHA256_PARAMETER].string_param = self._sha256
        return response.SerializeToString()


def infer(session: Session, requests: Sequence[pb.ModelInferRequest]) -> list[pb.ModelInferResponse]:
    """Answer every request from one run of ``session`` over all their rows."""
    parts = [
        np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)
        for request in requests
    ]
    arrays = session.run(_OUTPUTS, {IMAGE: parts[0] if len(parts) == 1 else np.concatenate(parts)})
    responses = []
    first = 0
    for request, part in zip(requests, parts, strict=True):
        last = first + len(part)
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        for name, array in zip(_OUTPUTS, arrays, strict=True):
            rows = array[first:last]
            response.outputs.add(name=name, datatype="FP32", shape=rows.shape)
            response.raw_output_contents.append(rows.tobytes())
        responses.append(response)
        first = last
    return responses
