"""Makes a virtual environment for mosec under ``build/``, as mosec is not a dependency of this project."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

from benchmarks.serving.errors import ContestantMissingError
from foldserve.demo.children import ending_with_us

_MOSEC_VERSION = "0.9.8"
_INSTALL_LIMIT_S = 600


def mosec_python(folder: Path = Path("build")) -> Path:
    """Return the interpreter that has mosec and this project's versions of numpy and ONNX Runtime.

    That is this one if mosec was brought along, as to machines without a package index.

    Raises:
        ContestantMissingError: the environment could not be made.
    """
    if importlib.util.find_spec("mosec") is not None:
        return Path(sys.executable)
    runtime, numpy = version("onnxruntime"), version("numpy")
    home = folder.absolute() / f"bench-mosec-{_MOSEC_VERSION}-ort-{runtime}-numpy-{numpy}"
    python = home / "bin" / "python"
    finished = home / "finished"
    if not finished.exists():
        venv.create(home, with_pip=True, clear=True)
        packages = [f"mosec=={_MOSEC_VERSION}", f"onnxruntime=={runtime}", f"numpy=={numpy}"]
        installed = subprocess.run(
            ending_with_us([python, "-m", "pip", "install", "--quiet", *packages]),
            capture_output=True,
            text=True,
            timeout=_INSTALL_LIMIT_S,
            check=False,
        )
        if installed.returncode != 0:
            lines = installed.stderr.strip().splitlines() or ["pip said nothing"]
            raise ContestantMissingError(f"mosec {_MOSEC_VERSION} cannot be installed: {lines[-1]}")
        finished.touch()
    return python
