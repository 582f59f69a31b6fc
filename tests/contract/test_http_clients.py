"""Clients that others wrote understand every answer of the REST API: Triton's, KServe's and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.runtime.session import Session
from tests.contract.test_kserve_client import PYTHON
from tests.support.encoded_images import encode
from tests.support.foreign_clients import CLIENTS, report_of, require_installed, run_client
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.support.artifacts import TinyNetwork


@pytest.fixture(scope="module")
def http_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(repository, tmp_path_factory.mktemp("http-clients"), "--http") as process:
        yield process


@pytest.fixture
def images_file(network: TinyNetwork, tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", network.random_images(5))
    return tmp_path / "images.npy"


def expected_outputs(network: TinyNetwork) -> list[NDArray[np.float32]]:
    session = Session(network.to_onnx(), device="cpu")
    return list(session.run(("logits", "probabilities"), {"image": network.random_images(5)}))


def test_stock_triton_client_gets_the_same_logits(
    http_server: ServerProcess, network: TinyNetwork, images_file: Path
) -> None:
    script = CLIENTS / "triton_http_script.py"
    report = report_of(sys.executable, script, http_server.api_address, images_file)
    logits, probabilities = expected_outputs(network)
    ways = [way for way in report if way.endswith("logits")]
    assert len(ways) == 6
    for way in ways:
        assert (np.float32(report[way]) == logits).all(), way
    best_two = np.argsort(-probabilities, axis=1)[:, :2]
    assert report["classes"] == [
        [f"{row[index]:f}:{index}:{network.labels[index]}" for index in best]
        for row, best in zip(probabilities, best_two, strict=True)
    ]
    assert (report["live"], report["ready"], report["model_ready"]) == (True, True, True)
    assert (report["server"], report["shape"], report["max_batch_size"]) == ("foldserve", [-1, 1, 8, 8], 32)
    assert {"name": "tiny", "version": "2", "state": "READY", "reason": ""} in report["index"]
    assert report["executions"] >= 1
    assert (report["unloaded"], report["loaded"]) == (False, True)
    floats, unknown = report["errors"]
    assert floats[0] == "400"
    assert "normalisation (mean, std) is inside the model" in floats[1]
    assert unknown[0] == "404"


@pytest.mark.interop
def test_kserve_client_gets_the_same_logits(
    http_server: ServerProcess, network: TinyNetwork, images_file: Path
) -> None:
    require_installed([PYTHON], "the KServe SDK")
    script = CLIENTS / "kserve_rest_script.py"
    report = report_of(PYTHON, script, http_server.api_address, images_file)
    logits, _ = expected_outputs(network)
    for way in ("logits", "json_logits"):
        assert (np.float32(report[way]) == logits).all(), way
    assert (report["live"], report["ready"], report["model_ready"]) == (True, True, True)
    assert report["id"] == "42"
    status, message = report["error"]
    assert status == 400
    assert "normalisation (mean, std) is inside the model" in message


# With --http2 curl offers HTTP/2 in a header, and goes on in HTTP/1.1.
@pytest.mark.parametrize("flags", [[], ["--http2"]], ids=["plain", "offers HTTP/2"])
def test_curl_classifies_a_picture(
    http_server: ServerProcess, network: TinyNetwork, tmp_path: Path, flags: list[str]
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl, which is not on the path")
    image = network.random_images(1)
    (tmp_path / "cat.png").write_bytes(encode(image[0, 0]))
    url = f"http://{http_server.api_address}/v2/models/tiny/classify"
    command = [
        "curl",
        "--silent",
        "--fail-with-body",
        "--data-binary",
        f"@{tmp_path / 'cat.png'}",
        url,
        *flags,
    ]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert answer["labels"][0]["index"] == int(network.logits(image).argmax())


@pytest.mark.slow
def test_java_classifies_pictures(http_server: ServerProcess, network: TinyNetwork, tmp_path: Path) -> None:
    """By the HttpClient of its own library, which offers HTTP/2 too, and keeps the connection."""
    if shutil.which("java") is None:
        pytest.skip("needs java, which is not on the path")
    images = network.random_images(3)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(encode(image[0]))
    url = f"http://{http_server.api_address}/v2/models/tiny/classify"
    ended = run_client("java", CLIENTS / "java" / "ClassifyOverHttp.java", url, *paths)
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [answer["labels"][0]["index"] for answer in answers] == network.logits(images).argmax(1).tolist()
