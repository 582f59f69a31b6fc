"""Downloads a Debian package and unpacks it without installing it, so without root."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The package is some 30 MB; apt gives up on a dead server long before.
_APT_TIMEOUT_S = 300.0
_UNPACK_TIMEOUT_S = 60.0


@contextmanager
def unpacked_package(package: str) -> Iterator[Path]:
    """Download ``package`` with apt, and yield a temporary folder in which it is unpacked.

    Raises:
        DatasetError: this is not a Debian system, or apt or dpkg failed.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise DatasetError("there is no apt-get or dpkg: this is not a Debian system")
    with tempfile.TemporaryDirectory(prefix="foldserve-") as folder:
        # Package lists of our own: a fresh machine has none, and only root may download the system's.
        Path(folder, "lists").mkdir()
        apt = ["apt-get", "-qq", *_options(f"{folder}/lists")]
        _run([*apt, "update"], folder, _APT_TIMEOUT_S)
        _run([*apt, "download", package], folder, _APT_TIMEOUT_S)
        packages = list(Path(folder).glob("*.deb"))
        if len(packages) != 1:
            raise DatasetError(f"apt-get download {package} left {len(packages)} packages, expected 1")
        _run(["dpkg", "-x", packages[0].name, "unpacked"], folder, _UNPACK_TIMEOUT_S)
        yield Path(folder) / "unpacked"


def _options(lists: str) -> list[str]:
    options = {
        "Dir::State::Lists": lists,
        "Dir::Cache::pkgcache": "",  # else caches of these lists are written into the system's folder
        "Dir::Cache::srcpkgcache": "",
        "Debug::NoLocking": "1",  # the system is not changed, so its lock is not needed
        "APT::Sandbox::User": "root",  # apt's own user cannot write into a private temporary folder
    }
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _run(command: list[str], folder: str, timeout_s: float) -> None:
    shown = " ".join(command)
    try:
        done = subprocess.run(  # noqa: S603  # fixed commands, no shell
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise DatasetError(f"`{shown}` did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no message"]
        raise DatasetError(f"`{shown}` failed: {lines[-1]}")
