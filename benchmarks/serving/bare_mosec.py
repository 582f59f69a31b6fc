"""Serves the model with mosec, the fastest Python server, over HTTP: bytes of a uint8 image in, logits out.

Runs in an environment of its own (`mosec_environment`), so it imports nothing of this project.
mosec reads its flags (``--port``, ``--address``) from the command line; the rest comes by environment.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort
from mosec import Server, Worker  # type: ignore[import-not-found]  # installed in an environment of its own

# The best of 8, 16 and 32 with 1 and 10 ms (mosec's default) at concurrency 32, three rounds of each.
_MAX_BATCH = 32
_MAX_WAIT_MS = 1


class Classifier(Worker):  # type: ignore[misc]  # mosec is not there when types are checked
    """One ONNX Runtime session, opened as foldserve opens its own."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["BARE_THREADS"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            os.environ["BARE_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self._shape = self._session.get_inputs()[0].shape[1:]

    def deserialize(self, data: bytes) -> np.ndarray:
        """Bytes to one image [C, H, W]."""
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        """Images to logits, a batch at a time."""
        (logits,) = self._session.run(["logits"], {"image": np.stack(data)})
        return list(logits)

    def serialize(self, data: np.ndarray) -> bytes:
        """One row of logits to bytes."""
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Classifier,
        num=int(os.environ.get("BARE_WORKERS", "1")),
        max_batch_size=_MAX_BATCH,
        max_wait_time=_MAX_WAIT_MS,
    )
    server.run()
