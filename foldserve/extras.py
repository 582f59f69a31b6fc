"""Knows which packages each extra installs, and the command that installs missing ones."""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Import names by extra of pyproject.toml. `runtime` stands for the extra serve or gpu; `serve` and `export`
# stand for themselves or, beside gpu, for the extras that leave ONNX Runtime out.
EXTRAS: dict[str, tuple[str, ...]] = {
    "client": ("google.protobuf", "grpc"),
    "train": ("torch", "matplotlib"),
    "export": ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"),
    "serve": (
        *("google.protobuf", "grpc", "grpc_health", "grpc_reflection"),
        *("httptools", "prometheus_client", "starlette", "uvicorn"),
    ),
    "runtime": ("onnxruntime",),
    "parquet": ("pyarrow",),
    "tune": ("optuna",),
    "mlflow": ("mlflow",),
    "ui": ("fastapi", "google.protobuf", "gradio", "grpc", "uvicorn"),
}


def missing_packages(extras: Iterable[str]) -> dict[str, list[str]]:
    """Return the packages of ``extras`` that are not installed, by extra. Imports nothing."""
    missing = {extra: [name for name in EXTRAS[extra] if not _is_installed(name)] for extra in extras}
    return {extra: names for extra, names in missing.items() if names}


def extras_with(module: str) -> dict[str, list[str]]:
    """Return the first extra that installs the top-level ``module``, as a dict; empty if none does."""
    for extra, names in EXTRAS.items():
        if module in {name.partition(".")[0] for name in names}:
            return {extra: [module]}
    return {}


def how_to_install(missing: dict[str, list[str]]) -> str:
    """Return the message about missing packages, ending with the command that installs them.

    The command works from any folder: it names this interpreter and, if foldserve runs from a checkout, the
    checkout. Otherwise the name is enough, as pip then extends the installed foldserve.
    """
    packages = list(dict.fromkeys(name for names in missing.values() for name in names))
    extras = ",".join(dict.fromkeys(_extra_here(extra) for extra in missing))
    folder = Path(__file__).parents[1]
    if (folder / "Makefile").exists():  # a checkout: wheels do not contain it
        source = f"-e {shlex.quote(f'{folder}[{extras}]')}"
    else:
        source = f"'foldserve[{extras}]'"
    python = shlex.quote(sys.executable)
    # Environments made by uv contain no pip.
    installer = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
    names = ", ".join(packages)
    return f"needs packages that are not installed: {names}; install them with: {installer} {source}"


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # its parent package is missing, or something else has its name
        return False


def _extra_here(extra: str) -> str:
    """Return the extra to install on this machine: with an NVIDIA driver, ONNX Runtime's build for CUDA."""
    if _has_nvidia_driver():
        return {"runtime": "gpu", "serve": "serve-base", "export": "export-base"}.get(extra, extra)
    return "serve" if extra == "runtime" else extra


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
