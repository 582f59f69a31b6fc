"""Our own source files, and the modules that they import."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
# `foldserve` holds links to the other three, which a walk through it does not follow.
PACKAGE_FOLDERS = ("foldserve", "training", "export", "serving")


def source_files(*folders: str) -> Iterator[Path]:
    """Yield the Python files of ``folders``, by default those of the import package."""
    for folder in folders or PACKAGE_FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports anywhere in it, except for type checking alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    packages = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").partition(".")[0])
    return packages
