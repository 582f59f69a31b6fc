"""The wheel: what it puts into site-packages, and every command run from it, far from the checkout."""

from __future__ import annotations

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

from foldserve.demo.children import ending_with_us
from tests.support.wheel import build, clean_environment, copy_checkout

# Packages of a user's own, called as parts of foldserve are.
_USERS_PACKAGES = ("training", "export", "serving", "demo", "imaging")
_NETWORK = """
from torch import nn


def net(in_channels, class_count):
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), pooled, nn.Linear(4, class_count))
"""
_START_S = 60.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an unpacked sdist, as an index would serve it: both must hold everything."""
    folder = tmp_path_factory.mktemp("packaging")
    checkout = copy_checkout(folder / "checkout")
    archive = build("sdist", checkout, folder / "sdist")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder / "wheel")


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and a folder far from the checkout to work in."""

    binaries: Path
    folder: Path

    def run(self, *arguments: str, module: bool = False) -> str:
        """Run `foldserve`, or `python -m foldserve`, and return what it printed; it must have worked."""
        start = ["python", "-m", "foldserve"] if module else ["foldserve"]
        return self.run_program(*start, *arguments)

    def run_program(self, program: str, *arguments: str) -> str:
        """Run a program of the environment and return what it printed; it must have worked."""
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment that has the wheel."""
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
    return folder / "venv" / "bin"


@pytest.fixture
def installed(binaries: Path, tmp_path: Path) -> Installed:
    return Installed(binaries, tmp_path)


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


def test_a_wheel_straight_from_a_checkout_holds_the_same_files(wheel: Path, tmp_path: Path) -> None:
    """As the Dockerfile installs it: through the links."""
    checkout = wheel.parents[1] / "checkout"
    direct = build("wheel", checkout, tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(direct).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_old_top_level_names_are_gone(installed: Installed) -> None:
    code = f"import importlib.util as u; print([n for n in {_USERS_PACKAGES} if u.find_spec(n)])"
    assert installed.run_program("python", "-c", code).strip() == "[]"


def test_import_gives_the_public_names_and_loads_nothing_heavy(installed: Installed) -> None:
    code = (
        "import sys, foldserve; assert not {'torch', 'grpc', 'onnxruntime'} & sys.modules.keys();"
        "print(foldserve.__version__, foldserve.__file__, foldserve.Client, foldserve.AsyncClient)"
    )
    output = installed.run_program("python", "-c", code)
    assert str(installed.binaries.parent) in output, "not the checkout's"


def test_networks_in_packages_called_as_parts_of_ours_are_found(installed: Installed, tmp_path: Path) -> None:
    for package in _USERS_PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "networks.py").write_text(_NETWORK)
    # One process for all, as starting PyTorch takes most of the time.
    code = f"""
from foldserve.cli import main
for package in {_USERS_PACKAGES}:
    assert main(["inspect", f"{{package}}.networks:net", "--input", "1x8x8"]) == 0
"""
    output = installed.run_program("python", "-c", code)
    for package in _USERS_PACKAGES:
        assert f"{package}.networks:net, image 1x8x8" in output


@pytest.mark.slow
def test_torchrun_starts_training(installed: Installed, tmp_path: Path) -> None:
    """Which puts the current folder first on the path: a package called `training` is there."""
    write_pictures(tmp_path / "pictures")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "networks.py").write_text(_NETWORK)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "foldserve")
    assert "--arch" in installed.run_program("python", *torchrun, "train", "--help")
    flags = ("--arch", "training.networks:net", "--dataset", "pictures", "--run-dir", "run")
    flags += ("--epochs", "1", "--batch-size", "16", "--threads", "1", "--image-size", "8")
    installed.run_program("python", *torchrun, "train", *flags)
    assert (tmp_path / "run" / "best.pt").is_file()


def write_pictures(folder: Path) -> None:
    """Write two classes of noise, a dark and a light one, into FOLDER/CLASS."""
    generator = np.random.default_rng(0)
    for label, offset in (("dark", 0), ("light", 100)):
        (folder / label).mkdir(parents=True)
        for index in range(40):
            pixels = generator.integers(offset, offset + 100, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")


def test_every_command_works_from_the_wheel(installed: Installed) -> None:
    """From pictures to an answer, in a folder whose own packages are called as ours once were."""
    folder = installed.folder
    for name in _USERS_PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own package')\n")
    write_pictures(folder / "pictures")
    assert installed.run("--version").startswith("foldserve ")
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
        ending_with_us(command), cwd=folder, env=clean_environment(), stderr=subprocess.PIPE, text=True
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
            assert "dark" in answer
            assert "shades" in installed.run("models", "list", "--server", address)
        finally:
            server.terminate()
            server.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
