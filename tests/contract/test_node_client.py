"""A client in JavaScript, which has the protocol's files and nothing else of ours."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.runtime.session import Session
from tests.support.encoded_images import encode
from tests.support.foreign_clients import CLIENTS, SOURCE, report_of, require_installed

if TYPE_CHECKING:
    from tests.support.artifacts import TinyNetwork
    from tests.support.server_process import ServerProcess

INVALID_ARGUMENT = 3  # gRPC's number


@pytest.mark.interop
def test_node_client_gets_the_same_logits_and_labels(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    node = Path(shutil.which("node") or SOURCE / "node")
    require_installed([node, CLIENTS / "node" / "node_modules" / "@grpc" / "grpc-js"], "Node and its gRPC")
    images = network.random_images(5)
    file = encode(images[0, 0])
    text = {"pixels": base64.b64encode(images.tobytes()).decode(), "image": base64.b64encode(file).decode()}
    (tmp_path / "input.json").write_text(json.dumps(text | {"shape": images.shape}))
    script = CLIENTS / "node" / "client.js"
    report = report_of(node, script, server.address, SOURCE / "protos", tmp_path / "input.json")

    logits, probabilities = Session(network.to_onnx(), device="cpu").run(
        ("logits", "probabilities"), {"image": images}
    )
    assert report["answered"] == ["42", "tiny", "2"]
    assert report["shapes"] == [["logits", "FP32", [5, 3]], ["probabilities", "FP32", [5, 3]]]
    # The same runtime and file: bit-identical, also after JSON, which keeps float64 whole.
    assert (np.float32(report["outputs"][0]) == logits.ravel()).all()
    assert (np.float32(report["outputs"][1]) == probabilities.ravel()).all()
    assert (np.float32(report["typed_logits"]) == logits.ravel()).all()
    first, wrong, last = report["streamed"]
    assert (first[0], wrong[0], last[0]) == ("0", "wrong", "2")
    assert (np.float32([first[1], last[1]]) == logits.ravel()).all()
    assert "normalisation (mean, std) is inside the model" in wrong[1]

    request_id, version, (classified,) = report["classified"]
    best = np.argsort(-probabilities[0])[:2]
    assert (request_id, version) == ("7", "2")
    assert [label["name"] for label in classified["labels"]] == [network.labels[index] for index in best]
    assert np.float32([label["probability"] for label in classified["labels"]]).tolist() == (
        probabilities[0][best].tolist()
    )
    answered, failed = report["classified_in_stream"]
    assert answered == ["0", [classified]]
    assert failed[:2] == ["1", "INVALID_ARGUMENT"]
    assert report["ready"]
    assert tuple(report["labels"]) == network.labels
    assert report["error"][0] == INVALID_ARGUMENT
