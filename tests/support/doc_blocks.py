"""Commands in the documentation: finds them, and runs them in a folder with what they speak of.

A fenced block of ``sh`` or ``python`` is run as it stands. A comment in the line above it says otherwise:

    <!-- slow -->            run by `make test-all` only
    <!-- not run: REASON --> not run

``foldserve serve`` runs in the background until the next one starts, or the page ends. Only ports change.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.free_ports import free_ports
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>[^\n]*) -->\n)?(?P<indent> *)```(?P<kind>sh|bash|console|shell|python)\n"
    r"(?P<text>.*?)^ *```$",
    flags=re.DOTALL | re.MULTILINE,
)
_NOT_RUN = "not run: "
_PORTS = {"8000": "HTTP", "8001": "GRPC", "8002": "METRICS"}

# The command as users type it. A server goes into the background once it serves; the one before it ends.
_COMMAND = """#!/usr/bin/env bash
runs() {{ [[ -d /proc/$1 ]] && ! grep -q '^State:.Z' "/proc/$1/status"; }}
if [[ "$1" != serve ]]; then exec {python} -m foldserve "$@"; fi
if [[ -f "$DOCS_STATE/pid" ]]; then
    kill "$(cat "$DOCS_STATE/pid")" 2>/dev/null || true
    while runs "$(cat "$DOCS_STATE/pid")"; do sleep 0.05; done
fi
setsid timeout 600 {python} -m foldserve "$@" > "$DOCS_STATE/log" 2>&1 < /dev/null &
echo $! > "$DOCS_STATE/pid"
until grep -q "serving on" "$DOCS_STATE/log"; do
    runs "$(cat "$DOCS_STATE/pid")" || {{ cat "$DOCS_STATE/log" >&2; exit 1; }}
    sleep 0.05
done
"""


@dataclass(frozen=True)
class Block:
    """A block of commands; ``page`` is its path from the root, ``line`` where its text begins."""

    page: str
    line: int
    kind: str
    text: str
    marker: str

    @property
    def is_slow(self) -> bool:
        """Whether it is run by `make test-all` only."""
        return self.marker.startswith("slow")

    @property
    def reason(self) -> str:
        """Why it is not run; "" if it is."""
        return self.marker.removeprefix(_NOT_RUN) if self.marker.startswith(_NOT_RUN) else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return the pages with commands: the README and all below docs/, from the root."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of commands on ``page``, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["kind"],
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            found["marker"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


class Reader:
    """Types a page's commands in ``folder``, as its reader would; use it as a context manager."""

    def __init__(self, folder: Path, state: Path, settings: Mapping[str, str] | None = None) -> None:
        self._folder, self._state = folder, state
        state.mkdir()
        command = state / "bin" / "foldserve"
        command.parent.mkdir()
        command.write_text(_COMMAND.format(python=sys.executable))
        launcher = command.parent / "torchrun"  # which an environment made of another's packages lacks
        launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
        for script in (command, launcher):
            script.chmod(0o755)
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        path = os.pathsep.join((str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
        server = f"127.0.0.1:{self._ports['8001']}"
        self._environment = os.environ | {
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "DOCS_STATE": str(state),
            "FOLDSERVE_SERVE_PORT": str(self._ports["8001"]),
            "FOLDSERVE_SERVE_METRICS_PORT": str(self._ports["8002"]),
            "FOLDSERVE_SERVE_HTTP_PORT": str(self._ports["8000"]),
            "FOLDSERVE_CLASSIFY_SERVER": server,
        }
        self._environment |= settings or {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pid = self._state / "pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGTERM)

    def run(self, block: Block) -> str:
        """Run a block and return its output; fails with it if the block fails."""
        text = re.sub(r":(800[012])\b", lambda found: f":{self._ports[found[1]]}", block.text)
        words = ["bash", "-euo", "pipefail", "-c", text]
        if block.kind == "python":
            words = [sys.executable, "-c", text]
        done = subprocess.run(
            words, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        log = self._state / "log"
        served = log.read_text() if log.exists() else ""
        assert done.returncode == 0, f"{block}: {block.text}\n{done.stdout}{done.stderr}\nserver: {served}"
        return done.stdout
