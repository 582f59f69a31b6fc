"""The stock Triton client, in a process of its own, understands every answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from foldserve.runtime.session import Session
from tests.support.foreign_clients import CLIENTS, report_of
from tests.support.server_process import DEVICE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork
    from tests.support.server_process import ServerProcess


def test_stock_triton_client_gets_the_same_logits(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    images = network.random_images(5)
    np.save(tmp_path / "images.npy", images)
    script = CLIENTS / "triton_script.py"
    report = report_of(sys.executable, script, server.address, tmp_path / "images.npy")
    logits, probabilities = Session(network.to_onnx(), device="cpu").run(
        ("logits", "probabilities"), {"image": images}
    )
    # The same runtime and file: bit-identical, also after JSON, which keeps float64 whole. CUDA rounds
    # otherwise, and the logits are near 10.
    tolerance = 0.0 if DEVICE == "cpu" else 1e-5
    for way in ("logits", "called_back_logits", "file_logits", "aio_logits", "typed_logits"):
        assert np.abs(np.float32(report[way]) - logits).max() <= tolerance, way
    assert np.abs(np.float32(report["probabilities"]) - probabilities).max() <= tolerance
    wrong = report["streamed"].pop(2)
    assert "shape [1, 1, 7, 8]" in wrong
    for streamed in (report["streamed"], report["aio_streamed"]):
        assert [request_id for request_id, _ in streamed] == [str(index) for index in range(5)]
        assert np.abs(np.float32([rows[0] for _, rows in streamed]) - logits).max() <= tolerance
    best_two = np.argsort(-probabilities, axis=1)[:, :2]
    assert report["classes"] == [
        [f"{row[index]:f}:{index}:{network.labels[index]}" for index in best]
        for row, best in zip(np.float32(report["probabilities"]), best_two, strict=True)
    ]
    assert report["config"] == [32, ["logits", "probabilities"]]
    assert report["executions"] >= 1
    assert (report["live"], report["ready"], report["model_ready"]) == (True, True, True)
    assert (report["server"], report["id"], report["version"]) == ("foldserve", "42", "2")
    assert report["shape"] == [-1, 1, 8, 8]
    assert ["tiny", "2", "READY"] in report["index"]
    floats, unknown = report["errors"]
    assert floats[0] == "StatusCode.INVALID_ARGUMENT"
    assert "normalisation (mean, std) is inside the model" in floats[1]
    assert unknown[0] == "StatusCode.NOT_FOUND"
