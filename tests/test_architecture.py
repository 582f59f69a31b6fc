"""Imports point one way, and the light parts stay light."""

import ast
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each package may import of ours. `serving` imports neither of the others, `imaging` none at all.
ALLOWED = {
    "imaging": set(),
    "serving": {"imaging"},
    "training": {"imaging"},
    "export": {"imaging", "serving", "training"},
    "demo": {"imaging", "serving", "training", "export"},
}
# Third-party packages that a package must never import.
FORBIDDEN = {
    "imaging": {"torch", "onnx", "onnxruntime", "grpc"},
    "serving": {"torch", "onnx", "onnxscript", "matplotlib"},
    "training": {"onnx", "onnxruntime", "onnxscript", "grpc"},
    "export": {"grpc"},
    "demo": {"onnxruntime", "grpc"},
}
# Modules that must know neither the wire nor the runtime.
INNER = {
    "serving/batcher.py": {"grpc", "onnxruntime", "google"},
    "serving/batch_requests.py": {"grpc", "onnxruntime", "google"},
    "serving/servicer.py": {"grpc", "onnxruntime"},
    "serving/calls.py": {"grpc", "onnxruntime"},
    "serving/control.py": {"grpc", "onnxruntime"},
    "serving/permissions.py": {"grpc", "onnxruntime", "google"},
    "serving/tokens.py": {"grpc", "onnxruntime", "google"},
    "serving/credentials.py": {"grpc", "onnxruntime", "google"},
    "serving/responses.py": {"grpc", "onnxruntime"},
    "serving/artifact.py": {"grpc", "onnxruntime", "google"},
    "serving/tally.py": {"grpc", "onnxruntime", "google", "prometheus_client"},
    "serving/statistics.py": {"grpc", "onnxruntime", "prometheus_client"},
    "serving/model_metrics.py": {"grpc", "onnxruntime", "google"},
    "serving/http_endpoint.py": {"grpc", "onnxruntime", "google", "prometheus_client"},
    "serving/repository.py": {"grpc", "onnxruntime", "google"},
    "serving/version_table.py": {"grpc", "onnxruntime", "google"},
    "serving/version_files.py": {"grpc", "onnxruntime", "google"},
    "serving/scanning.py": {"grpc", "onnxruntime", "google"},
    "serving/layout.py": {"grpc", "onnxruntime", "google"},
    "serving/model_settings.py": {"grpc", "onnxruntime", "google"},
}


def imported_modules(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it; those for type checking alone do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a module comes from"
            modules.add((node.module or "").partition(".")[0])
    return modules


def modules_with_entry_point(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path.name != "__main__.py"]


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_what_its_place_allows(package: str) -> None:
    for path in modules_with_entry_point(package):
        modules = imported_modules(path)
        wrong = (modules & ALLOWED.keys() - {package} - ALLOWED[package]) | (modules & FORBIDDEN[package])
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("module", INNER)
def test_inner_modules_know_neither_wire_nor_runtime(module: str) -> None:
    assert not imported_modules(ROOT / module) & INNER[module]


def test_only_the_session_module_imports_onnxruntime() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for package in ALLOWED
        for path in modules_with_entry_point(package)
        if "onnxruntime" in imported_modules(path)
    }
    # What quantises is part of ONNX Runtime too; it runs nothing.
    assert importers == {"serving/session.py", "export/quantize.py"}


def test_every_package_is_installed() -> None:
    """The list in pyproject.toml is written by hand; a package missing there is missing from every wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ALLOWED
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert sorted(found) == sorted(listed)


def test_every_module_beside_the_packages_is_installed() -> None:
    """In wheels by pyproject.toml, in images by what .dockerignore lets through."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["py-modules"]
    assert sorted(listed) == sorted(path.stem for path in ROOT.glob("*.py"))
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    for name in (*(f"{module}.py" for module in listed), *ALLOWED):
        assert any(fnmatch(name, line[1:]) for line in let_through if line.startswith("!")), name


def test_import_checker_sees_imports_inside_functions(tmp_path: Path) -> None:
    """The check itself: an import hidden in a function body is found, one for types alone is not."""
    source = tmp_path / "hidden.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onnx\ndef f():\n    import torch\n"
    )
    assert imported_modules(source) == {"typing", "torch"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        pytest.param("import foldserve", {"torch", "onnx", "onnxruntime", "grpc"}, id="console script"),
        pytest.param("import serving.server", {"torch", "onnx", "matplotlib"}, id="server"),
        pytest.param("import training.run", {"onnx", "onnxruntime", "grpc"}, id="training"),
    ],
)
def test_heavy_packages_are_not_loaded_where_not_needed(statement: str, absent: set[str]) -> None:
    """What counts is what really gets loaded, through whatever chain of imports."""
    code = f"import sys\n{statement}\nprint(*sorted({absent!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
