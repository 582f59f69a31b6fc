"""The wheel: what it puts into site-packages, and every command run from it, far from the checkout."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "foldserve", "training", "export", "serving")
_START_S = 60.0


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build a wheel or an sdist of the folder ``source`` and return the file."""
    command = [
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an unpacked sdist, as an index would serve it: both must hold everything."""
    folder = tmp_path_factory.mktemp("packaging")
    checkout = folder / "checkout"  # a copy: building leaves files behind
    for name in _BUILT_FROM:
        place = ROOT / name
        if place.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(place, checkout / name, symlinks=True, ignore=ignored)
        elif place.exists():
            checkout.mkdir(exist_ok=True)
            shutil.copy(place, checkout / name)
    archive = build("sdist", checkout, folder / "sdist")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder / "wheel")


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and a folder far from the checkout to work in."""

    binaries: Path
    folder: Path

    def run(self, *arguments: str, module: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command and return how it ended; it must have worked."""
        start = (
            [str(self.binaries / "python"), "-m", "foldserve"]
            if module
            else [str(self.binaries / "foldserve")]
        )
        done = subprocess.run(
            [*start, *arguments],
            cwd=self.folder,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FOLDSERVE"))}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What the wheel needs is taken from this environment. Its own .pth files are not read there, so that the
    # checkout, installed as editable here, stays out of reach.
    (site / "needs.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    work = folder / "work"
    work.mkdir()
    return Installed(folder / "venv" / "bin", work)


def test_wheel_puts_foldserve_and_nothing_else_into_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"foldserve"}
    for name in (
        "py.typed",
        "serving/pb/open_inference_pb2.pyi",
        "training/models/lenet.py",
        "export/pipeline.py",
    ):
        assert f"foldserve/{name}" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_old_top_level_names_are_gone(installed: Installed) -> None:
    names = ("training", "export", "serving", "demo", "imaging")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    done = subprocess.run(
        [installed.binaries / "python", "-c", code],
        cwd=installed.folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_import_gives_the_public_names_and_loads_nothing_heavy(installed: Installed) -> None:
    code = (
        "import sys, foldserve; assert not {'torch', 'grpc', 'onnxruntime'} & sys.modules.keys();"
        "print(foldserve.__version__, foldserve.__file__, foldserve.Client, foldserve.AsyncClient)"
    )
    done = subprocess.run(
        [installed.binaries / "python", "-c", code],
        cwd=installed.folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed.binaries.parent) in done.stdout, "not the checkout's"


def test_every_command_works_from_the_wheel(installed: Installed) -> None:
    """From pictures to an answer, in a folder whose own packages are called as ours once were."""
    folder = installed.folder
    for name in ("training", "export", "serving", "demo", "imaging"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own package')\n")
    generator = np.random.default_rng(0)
    for label, offset in (("dark", 0), ("light", 100)):
        (folder / "pictures" / label).mkdir(parents=True)
        for index in range(40):
            pixels = generator.integers(offset, offset + 100, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{index}.png")
    installed.run("--help", module=True)
    installed.run("inspect", "lenet")
    train = (
        "--dataset",
        "pictures",
        "--run-dir",
        "run",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--threads",
        "1",
    )
    installed.run("train", *train, "--image-size", "28", module=True)
    installed.run("export", "run", "--repository", "models", "--name", "shades")
    installed.run("models", "list", "--repository", "models")
    installed.run("models", "verify", "--repository", "models")
    installed.run("models", "verify", "--repository", "models", "--against", "run")
    installed.run("token", "--name", "somebody")
    installed.run("demo", "--help")
    port_file = folder / "port"
    command = [installed.binaries / "foldserve", "serve", "--repository", "models", "--port", "0"]
    command += ["--metrics-port", str(free_port()), "--port-file", str(port_file)]
    with subprocess.Popen(
        command, cwd=folder, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            deadline_s = time.monotonic() + _START_S
            while not (port_file.exists() and port_file.read_text()):
                assert server.poll() is None, server.communicate()
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            address = f"127.0.0.1:{port_file.read_text().strip()}"
            answer = installed.run(
                "classify", "--server", address, "--model", "shades", "pictures/dark/0.png"
            )
            assert "dark" in answer.stdout
            assert "shades" in installed.run("models", "list", "--server", address).stdout
        finally:
            server.terminate()
            server.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
