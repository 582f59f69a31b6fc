"""`buf` finds nothing wrong with the protocol's files; `buf curl` works with them, or by reflection."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from foldserve.runtime.session import Session
from tests.support.encoded_images import encode
from tests.support.foreign_clients import SOURCE, run_client

if TYPE_CHECKING:
    import subprocess

    from tests.support.artifacts import TinyNetwork
    from tests.support.server_process import ServerProcess

BUF = Path(sys.executable).with_name("buf")
INFERENCE, CLASSIFIER = "inference.GRPCInferenceService", "foldserve.v1.Classifier"
SCHEMAS = [
    pytest.param(["--schema", SOURCE / "protos"], id="schema"),
    pytest.param(["--reflect", "--reflect-protocol", "grpc-v1"], id="reflection v1"),
    pytest.param(["--reflect", "--reflect-protocol", "grpc-v1alpha"], id="reflection v1alpha"),
]


def curl(
    server: ServerProcess, method: str, request: dict[str, Any] | list[dict[str, Any]], flags: list[object]
) -> subprocess.CompletedProcess[str]:
    messages = request if isinstance(request, list) else [request]
    body = "\n".join(json.dumps(message) for message in messages)
    url = f"http://{server.address}/{method}"
    return run_client(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags, "-d", body, url)


def infer_request(images: np.ndarray, request_id: str = "", datatype: str = "UINT8") -> dict[str, Any]:
    return {
        "model_name": "tiny",
        "id": request_id,
        "inputs": [{"name": "image", "datatype": datatype, "shape": images.shape}],
        "raw_input_contents": [base64.b64encode(images.tobytes()).decode()],
    }


def logits_of(answer: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(answer["rawOutputContents"][0]), np.float32)


def answers_of(ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The JSON objects that buf printed one after another."""
    assert ended.returncode == 0, ended.stderr
    decoder, text, found = json.JSONDecoder(), ended.stdout.strip(), []
    while text:
        answer, end = decoder.raw_decode(text)
        found.append(answer)
        text = text[end:].strip()
    return found


@pytest.mark.parametrize("flags", SCHEMAS)
def test_buf_curl_gets_the_same_logits_and_labels(
    server: ServerProcess, network: TinyNetwork, flags: list[object]
) -> None:
    images = network.random_images(3)
    logits, probabilities = Session(network.to_onnx(), device="cpu").run(
        ("logits", "probabilities"), {"image": images}
    )
    (answer,) = answers_of(curl(server, f"{INFERENCE}/ModelInfer", infer_request(images, "42"), flags))
    assert (answer["id"], answer["modelName"], answer["modelVersion"]) == ("42", "tiny", "2")
    assert (logits_of(answer) == logits.ravel()).all()

    asked = {"model_name": "tiny", "images": [base64.b64encode(encode(images[0, 0])).decode()]}
    (answer,) = answers_of(curl(server, f"{CLASSIFIER}/Classify", asked, flags))
    (label,) = answer["results"][0]["labels"]
    assert label["name"] == network.labels[probabilities[0].argmax()]
    assert np.float32(label["probability"]) == probabilities[0].max()

    ended = curl(server, f"{INFERENCE}/ModelInfer", infer_request(images, datatype="FP32"), flags)
    assert ended.returncode == 3 << 3, "buf's exit status is gRPC's code, INVALID_ARGUMENT, times eight"
    assert "normalisation (mean, std) is inside the model" in ended.stderr


@pytest.mark.parametrize("flags", SCHEMAS)
def test_buf_curl_streams(server: ServerProcess, network: TinyNetwork, flags: list[object]) -> None:
    images = network.random_images(2)
    (logits,) = Session(network.to_onnx(), device="cpu").run(("logits",), {"image": images})
    asked = [infer_request(images, "0"), infer_request(images, "1", "FP32"), infer_request(images, "2")]
    first, wrong, last = answers_of(curl(server, f"{INFERENCE}/ModelStreamInfer", asked, flags))
    for answer in (first, last):
        assert (logits_of(answer["inferResponse"]) == logits.ravel()).all()
    assert "normalisation (mean, std) is inside the model" in wrong["errorMessage"]
    assert [answer["inferResponse"]["id"] for answer in (first, wrong, last)] == ["0", "1", "2"]


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]], ids=["lint", "format"])
def test_proto_files_are_formatted_as_buf_does(command: list[str]) -> None:
    ended = run_client(BUF, *command, SOURCE / "protos")
    assert ended.returncode == 0, ended.stdout + ended.stderr
