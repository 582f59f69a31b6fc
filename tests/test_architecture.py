"""Starts load only what they need, and the linters' rules about imports catch what they are there for.

The rules themselves are in pyproject.toml: the layers under [tool.importlinter], the ban on relative imports
and on a second name for our own packages under [tool.ruff].
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import PACKAGE_FOLDERS, ROOT

LINT_IMPORTS = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        pytest.param("import foldserve", {"pydantic", "numpy", "torch", "grpc"}, id="package"),
        pytest.param("import foldserve.cli", {"torch", "onnx", "onnxruntime", "grpc"}, id="command line"),
        pytest.param("from foldserve import Client", {"torch", "onnx", "onnxruntime"}, id="client"),
        pytest.param(
            "import foldserve.serving.server",
            {"torch", "onnx", "matplotlib", "starlette", "uvicorn"},
            id="server",
        ),
        pytest.param(
            "import foldserve.serving.server, foldserve.serving.observability.page_server",
            {"foldserve.serving.transport.http", "google.protobuf.json_format", "fastapi"},
            id="server with /metrics, without the REST API",
        ),
        pytest.param("import foldserve.training.run.train", {"onnx", "onnxruntime", "grpc"}, id="training"),
    ],
)
def test_a_start_loads_no_heavy_package_that_it_does_not_need(statement: str, absent: set[str]) -> None:
    """Counts what is really loaded, through any chain of imports."""
    code = f"import sys\n{statement}\nprint(*sorted({absent!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


@pytest.fixture(scope="module")
def lint_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the import package, for `lint_imports`."""
    copy = tmp_path_factory.mktemp("lint") / "copy"
    for folder in PACKAGE_FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint_imports(folder: Path) -> tuple[int, str]:
    """Check the contracts of ``folder`` and return the exit status and what was printed, on one line."""
    done = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS, "--no-logo"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_every_contract_holds(lint_copy: Path) -> None:
    status, output = lint_imports(lint_copy)
    assert status == 0, output
    assert " 0 broken" in output


# File, import and what the linter says of it.
PLANTS = {
    "ground imports the command line": (
        "foldserve/files.py",
        "foldserve.cli",
        "foldserve.files -> foldserve.cli",
    ),
    "ground imports serving": (
        "foldserve/artifact/writer.py",
        "foldserve.serving.errors",
        "foldserve.artifact.writer -> foldserve.serving.errors",
    ),
    "serving imports training": (
        "serving/addresses.py",
        "foldserve.training.recipes",
        "foldserve.serving.addresses -> foldserve.training.recipes",
    ),
    "export imports serving": (
        "export/publish.py",
        "foldserve.serving.errors",
        "foldserve.export.publish -> foldserve.serving.errors",
    ),
    "a room of serving imports the one above": (
        "serving/protocol/names.py",
        "foldserve.serving.services.inference",
        "foldserve.serving.protocol.names -> foldserve.serving.services.inference",
    ),
    "a room of export imports the one above": (
        "export/graph/__init__.py",
        "foldserve.export.precision",
        "foldserve.export.graph -> foldserve.export.precision",
    ),
    "a room of training imports the one above": (
        "training/models/__init__.py",
        "foldserve.training.engine",
        "foldserve.training.models -> foldserve.training.engine",
    ),
    "the command line imports ONNX Runtime": (
        "foldserve/cli.py",
        "onnxruntime",
        "foldserve.cli -> onnxruntime",
    ),
    "export imports ONNX Runtime": (
        "export/pipeline.py",
        "onnxruntime",
        "foldserve.export.pipeline -> onnxruntime",
    ),
    "the server imports PyTorch": ("serving/server.py", "torch", "foldserve.serving.server -> torch"),
    "the model repository imports gRPC": (
        "serving/repository/scanner.py",
        "grpc",
        "foldserve.serving.repository.scanner -> grpc",
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_import_breaks_its_contract(plant: str, lint_copy: Path) -> None:
    """Hidden in a function's body, where a reader overlooks it."""
    name, module, reported = PLANTS[plant]
    file = lint_copy / name
    content = file.read_text()
    file.write_text(f"{content}\n\ndef _planted() -> None:\n    import {module}\n")
    try:
        status, output = lint_imports(lint_copy)
    finally:
        file.write_text(content)
    assert status == 1, output
    assert reported in output


@pytest.mark.parametrize(
    "statement",
    [
        "import serving",
        "import export.pipeline",
        "from training.models import create_model",
        "from .text import quote",
        "from . import text",
    ],
)
def test_a_second_name_for_our_packages_is_refused(statement: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["ruff", "check", "--no-cache", "--stdin-filename", str(ROOT / "foldserve" / "planted.py"), "-"],
        input=f'"""Planted."""\n\n{statement}\n',
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "TID25" in done.stdout
