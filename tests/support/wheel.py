"""Builds the wheel and the sdist, and measures what an installation takes on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "foldserve", "training", "export", "serving")


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


def copy_checkout(folder: Path) -> Path:
    """Copy what the wheel is built from to ``folder``, as building leaves files behind; return the copy."""
    folder.mkdir(parents=True)
    for name in _BUILT_FROM:
        place = ROOT / name
        if place.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(place, folder / name, symlinks=True, ignore=ignored)
        elif place.exists():
            shutil.copy(place, folder / name)
    return folder


def clean_environment() -> dict[str, str]:
    """Return the environment without what would lead Python or foldserve back to the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FOLDSERVE"))}


def size_mb(folder: Path) -> float:
    """Return the bytes of all files below ``folder``, in units of 10^6; links count nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6
