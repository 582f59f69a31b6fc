"""Running a foreign client in a process of its own, and what it lacks where it cannot."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE = Path(__file__).parents[2]
CLIENTS = SOURCE / "tests" / "contract" / "clients"
# Generous: the KServe SDK alone takes seconds to import, and the test machine may be busy.
TIMEOUT_S = 120


def run_client(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a client to its end, without what would lead it away from a server on this machine."""
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment,
    )


def report_of(*command: object) -> Any:
    """Run a client that prints JSON, and return that."""
    ended = run_client(*command)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def require_installed(paths: Sequence[Path], what: str) -> None:
    """Skip the test where ``paths`` are missing; fail it where CI says that they must be there."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        lack = f"needs {what}, which `make interop` installs: {missing[0].relative_to(SOURCE)} is missing"
        if os.environ.get("FOLDSERVE_INTEROP") == "required":
            pytest.fail(lack)
        pytest.skip(lack)
