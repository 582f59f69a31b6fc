"""What the tests of several parts share: one short run of the whole path, and what a GPU test lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from foldserve.demo.children import ending_with_us

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.artifacts import TinyNetwork

ROOT = Path(__file__).parent.parent

# Set before PyTorch is loaded, here and in the processes that tests start: threads of several processes that
# spin on the same CPUs take many times as long as the processes one after the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Variables that a developer set for foldserve must not affect the commands that tests run.
for name in [name for name in os.environ if name.startswith("FOLDSERVE_")]:
    if name not in ("FOLDSERVE_TEST_DEVICE", "FOLDSERVE_INTEROP", "FOLDSERVE_BROWSER"):
        del os.environ[name]

# On a busy machine an example of a millisecond may take a second, so time is no reason to fail.
settings.register_profile("foldserve", deadline=None)
settings.load_profile("foldserve")


@dataclass(frozen=True)
class DemoRun:
    """A finished `foldserve demo` of one epoch on the real Fashion-MNIST."""

    folder: Path
    output: str

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "lenet"

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    @property
    def version(self) -> Path:
        return self.repository / "lenet" / "1"


def run_demo(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foldserve", "demo", "--epochs", "1"]
    command += ["--run-dir", str(folder / "runs" / "lenet"), "--repository", str(folder / "models")]
    return subprocess.run(
        ending_with_us([*command, *flags]), capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """One demo run for all tests that read its files; they must not change them."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_demo(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return DemoRun(folder, done.stdout)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape bytes that are not UTF-8 in reports (file names in captured logs), as xdist cannot send them."""
    report = yield
    report.sections = [(title, _escaped(text)) for title, text in report.sections]
    if report.longrepr is not None and _escaped(str(report.longrepr)) != str(report.longrepr):
        report.longrepr = _escaped(str(report.longrepr))
    return report


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="session")
def network() -> TinyNetwork:
    """A network of a few weights that NumPy can answer for, in a form that a server takes."""
    from tests.support.artifacts import TinyNetwork

    return TinyNetwork()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_for_gpu_tests() if any(item.get_closest_marker("gpu") for item in items) else None
    for item in items:
        if missing and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=missing))


def missing_for_gpu_tests() -> str | None:
    """Return the reason to skip GPU tests; None if CUDA works for both PyTorch and ONNX Runtime."""
    import torch

    from foldserve.runtime.session import cuda_is_present

    if not cuda_is_present():
        return "needs onnxruntime-gpu: the installed onnxruntime has no CUDA provider"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU with its driver: PyTorch finds none"
    return None
