"""Makes `.venv-networks`: torchvision and timm on top of this environment's own packages.

Both are test-only: no part of foldserve imports them, and torchvision's wheel would replace the CPU build of
torch. The environment sees the packages of the interpreter that makes it, so networks run on the very torch,
onnx and onnxruntime that the tests ran on.
"""

from __future__ import annotations

import hashlib
import site
import subprocess
import sys
import venv
from pathlib import Path

from foldserve.demo.children import ending_with_us

ROOT = Path(__file__).parents[2]
_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_INSTALL_LIMIT_S = 600


class EnvironmentMissingError(Exception):
    """The packages of networks cannot be installed."""


def networks_python(home: Path = ROOT / ".venv-networks") -> Path:
    """Return the interpreter that has torchvision and timm; make its environment where it is not there.

    Raises:
        EnvironmentMissingError: the environment could not be made.
    """
    python = home / "bin" / "python"
    finished = home / "finished"
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    if finished.exists() and finished.read_text() == wanted:
        return python
    venv.create(home, with_pip=True, clear=True)
    below = [f"import site; site.addsitedir({folder!r})\n" for folder in site.getsitepackages()]
    (_site_packages(home) / "project.pth").write_text("".join(below))
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", _REQUIREMENTS]
    try:
        installed = subprocess.run(
            ending_with_us(command), capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentMissingError(
            f"torchvision and timm were not installed within {_INSTALL_LIMIT_S} s"
        ) from None
    if installed.returncode != 0:
        lines = installed.stderr.strip().splitlines() or ["pip said nothing"]
        raise EnvironmentMissingError(f"torchvision and timm cannot be installed: {lines[-1]}")
    finished.write_text(wanted)
    return python


def _site_packages(home: Path) -> Path:
    return home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
