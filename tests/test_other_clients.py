"""The examples in other languages and tools, each run against a real server where its runtime exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve import Client
from tests.support.artifacts import TinyNetwork
from tests.support.foreign_clients import CLIENTS, SOURCE, require_installed
from tests.support.server_process import ServerProcess
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = ROOT / "examples"
JARS = Path("/usr/share/java")
COUNT = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository and some pictures."""
    place = tmp_path_factory.mktemp("other-clients")
    network = TinyNetwork()
    network.publish(place / "models" / "tiny")
    for index, image in enumerate(network.random_images(COUNT)):
        Image.fromarray(image[0]).save(place / f"{index}.png")
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(folder / "models", folder / "server", "--http") as running:
        yield running


def run(command: list[object], folder: Path, **variables: str) -> str:
    """Run a command in ``folder`` and return what it printed; it must have worked."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def pictures(folder: Path) -> list[str]:
    return [f"{index}.png" for index in range(COUNT)]


def expected_lines(server: ServerProcess, folder: Path) -> str:
    """What the examples that classify print: a line for each picture with its two best labels."""
    with Client(server.address) as client:
        answer = client.classify("tiny", [folder / name for name in pictures(folder)], top_k=2)
    lines = (
        "\t".join([name, *(f"{label.name} {label.probability:.1%}" for label in labels)])
        for name, labels in zip(pictures(folder), answer.labels, strict=True)
    )
    return "".join(f"{line}\n" for line in lines)


def test_node_example(server: ServerProcess, folder: Path) -> None:
    require("node")
    modules = CLIENTS / "node" / "node_modules"
    require_installed([modules / "@grpc" / "grpc-js"], "Node's gRPC")
    command = ["node", EXAMPLES / "node" / "classify.js", "tiny", *pictures(folder)]
    variables = {"NODE_PATH": str(modules), "FOLDSERVE_SERVER": server.address}
    assert run(command, folder, **variables) == expected_lines(server, folder)
    # package.json names what was tested here.
    assert '"@grpc/grpc-js"' in (EXAMPLES / "node" / "package.json").read_text()


@pytest.mark.slow
def test_go_example(server: ServerProcess, folder: Path, tmp_path: Path) -> None:
    require("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    if not Path("/usr/share/gocode/src/google.golang.org/grpc").is_dir():
        pytest.skip("needs Debian's golang-google-grpc-dev")
    run(["sh", EXAMPLES / "go" / "build.sh", tmp_path], tmp_path, GOCACHE=str(tmp_path / "cache"))
    assert (tmp_path / "gopath/src/example.com/classify/classify.go").is_file()
    command = [tmp_path / "classify", "tiny", *pictures(folder)]
    assert run(command, folder, FOLDSERVE_SERVER=server.address) == expected_lines(server, folder)


@pytest.mark.slow
def test_java_example(server: ServerProcess, folder: Path, tmp_path: Path) -> None:
    require("java", "javac", "protoc", "grpc_java_plugin")
    script = (EXAMPLES / "java" / "build.sh").read_text()
    (names,) = re.findall(r'^names="([^"]*)"', script, re.MULTILINE)
    missing = [name for name in names.split() if not (JARS / f"{name}.jar").exists()]
    if missing:
        pytest.skip(f"needs Debian's packages with {', '.join(missing)}")
    run(["sh", EXAMPLES / "java" / "build.sh", tmp_path], tmp_path)
    assert list((tmp_path / "classes").glob("Classify.class"))  # of Classify.java
    command = [tmp_path / "classify", "tiny", *pictures(folder)]
    assert run(command, folder, FOLDSERVE_SERVER=server.address) == expected_lines(server, folder)


@pytest.mark.interop
@pytest.mark.parametrize("flags", [[], ["--rest"]], ids=["grpc", "rest"])
def test_kserve_example(server: ServerProcess, folder: Path, flags: list[str]) -> None:
    python = SOURCE / ".venv-interop" / "bin" / "python"
    require_installed([python], "the KServe SDK")
    address = server.api_address if flags else server.address
    script = EXAMPLES / "infer_with_kserve.py"
    output = run([python, script, "tiny", "--shape", "1x8x8", "--server", address, *flags], folder)
    probabilities = [float(line.partition(": ")[2]) for line in output.splitlines()]
    images = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8)
    with Client(server.address) as client:
        expected = client.infer("tiny", images)["probabilities"][0]
    assert probabilities == pytest.approx(expected.tolist(), abs=1e-4)


def test_curl_example(server: ServerProcess, folder: Path) -> None:
    require("curl", "base64")
    output = run(["sh", EXAMPLES / "curl.sh", "tiny", "0.png", server.api_address], folder)
    with Client(server.address) as client:
        ((best, _),) = client.classify("tiny", [folder / "0.png"], top_k=2).labels
    assert f'"{best.name}"' in output
    assert '"probabilities"' in output


def test_buf_curl_example(server: ServerProcess, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", EXAMPLES / "buf_curl.sh", "tiny", "0.png", server.address]
    output = run(command, folder, PATH=path)
    with Client(server.address) as client:
        ((best, _),) = client.classify("tiny", [folder / "0.png"], top_k=2).labels
    assert f'"name": "{best.name}"' in output
