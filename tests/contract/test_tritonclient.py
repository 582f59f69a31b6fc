"""The stock Triton client, in a process of its own, understands every answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.session import Session

if TYPE_CHECKING:
    from tests.serving.artifacts import TinyNetwork
    from tests.serving.server_process import ServerProcess


def test_stock_triton_client_gets_the_same_logits(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    images = network.random_images(5)
    np.save(tmp_path / "images.npy", images)
    script = Path(__file__).with_name("triton_script.py")
    child = subprocess.run(
        [sys.executable, str(script), server.address, str(tmp_path / "images.npy")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout)
    logits, probabilities = Session(network.to_onnx(), device="cpu").run(
        ("logits", "probabilities"), {"image": images}
    )
    # The same runtime and file: bit-identical, also after JSON, which keeps float64 whole.
    assert (np.float32(report["logits"]) == logits).all()
    assert (np.float32(report["aio_logits"]) == logits).all()
    assert (np.float32(report["streamed_logits"]) == logits).all()
    assert (np.float32(report["file_logits"]) == logits[:1]).all()
    assert [text.split(":")[2] for text in report["classes"]] == [
        network.labels[index] for index in logits.argmax(axis=1)
    ]
    assert report["config"] == 32
    assert report["executions"] >= 1
    assert (np.float32(report["probabilities"]) == probabilities).all()
    assert (report["live"], report["ready"], report["model_ready"]) == (True, True, True)
    assert (report["server"], report["id"], report["version"]) == ("foldserve", "42", "2")
    assert report["shape"] == [-1, 1, 8, 8]
    assert ["tiny", "2", "READY"] in report["index"]
    status, message = report["error"]
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "normalisation (mean, std) is inside the model" in message
