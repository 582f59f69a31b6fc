"""What `pip install foldserve[...]` really brings, and how large it is: docs/install.md says the sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess
from tests.support.sources import ROOT
from tests.support.wheel import build, clean_environment, copy_checkout, size_mb

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # packages are fetched and unpacked

# The project's bound for the server's image beyond its base. Besides the packages it holds setuptools, the
# sources and what pip compiled: 14 MB when it was built.
_IMAGE_LIMIT_MB = 350
_REST_OF_IMAGE_MB = 25
_NO_INDEX = re.compile(
    r"No matching distribution found|Failed to establish|Connection|Network is unreachable"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build("wheel", copy_checkout(folder / "checkout"), folder / "wheel")


def install(wheel: Path, extras: str, folder: Path) -> Path:
    """Install the wheel with ``extras`` into a new environment; return its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    command = [*pip, "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[{extras}]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and _NO_INDEX.search(done.stderr):
        pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    return site


def documented_mb(extra: str) -> int:
    """The size in the table of docs/install.md."""
    found = re.search(
        rf"^\| `{extra}` \|.*\| (\d+) MB \|$", (ROOT / "docs/install.md").read_text(), re.MULTILINE
    )
    assert found, f"docs/install.md has no size of {extra}"
    return int(found[1])


def distributions(site: Path) -> set[str]:
    return {path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")}


def test_client_is_small_and_classifies(wheel: Path, tmp_path: Path) -> None:
    site = install(wheel, "client", tmp_path / "venv")
    assert distributions(site) & {
        "grpcio",
        "grpcio_health_checking",
        "onnx",
        "onnxruntime",
        "prometheus_client",
        "starlette",
        "torch",
    } == {"grpcio"}
    assert size_mb(site) == pytest.approx(documented_mb("client"), rel=0.1)

    TinyNetwork().publish(tmp_path / "models" / "tiny")
    code = """
import sys
import numpy as np
from foldserve import Client
with Client(sys.argv[1]) as client:
    print(client.infer("tiny", np.zeros((1, 1, 8, 8), np.uint8))["probabilities"].shape)
"""
    binaries = tmp_path / "venv" / "bin"
    with ServerProcess(tmp_path / "models", tmp_path / "server") as server:
        for command in (
            [binaries / "python", "-c", code, server.address],
            [binaries / "foldserve", "models", "list", "--server", server.address],
        ):
            done = subprocess.run(
                command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert "(1, 3)" in done.stdout or "READY" in done.stdout


def test_server_image_stays_within_its_bound(wheel: Path, tmp_path: Path) -> None:
    """What the Dockerfile installs for a CPU; the image itself can be built only where there is Docker."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (extras,) = re.findall(r'"\.\[\$\{RUNTIME\},([\w,-]+)\]"', dockerfile)
    assert "ARG RUNTIME=cpu" in dockerfile
    site = install(wheel, f"cpu,{extras}", tmp_path / "venv")
    assert not distributions(site) & {"torch", "onnx", "onnxscript", "matplotlib", "gradio"}
    size = size_mb(site)
    assert size + _REST_OF_IMAGE_MB < _IMAGE_LIMIT_MB
    assert size == pytest.approx(documented_mb("serve"), rel=0.1)
