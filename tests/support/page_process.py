"""A real `foldserve ui` process, in the environment of its own that `make ui-env` builds."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Self

from foldserve.demo.children import ending_with_us

SOURCE = Path(__file__).parents[2]
PYTHON = SOURCE / ".venv-ui" / "bin" / "python"
START_S = 120.0  # generous: Gradio takes seconds to load, and the test machine may be busy


class PageProcess:
    """`foldserve ui` for a server; a context manager.

    Attributes:
        url: where the page is.
        folder: its working folder.
    """

    def __init__(self, server: str, folder: Path, *flags: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._log_path, self._connections_path = folder / "page.log", folder / "connections"
        port_file = folder / "port"
        script = SOURCE / "tests" / "support" / "audited_command.py"
        command = [str(PYTHON), str(script), str(self._connections_path), "ui", "--server", server]
        command += ["--port", "0", "--port-file", str(port_file), *flags]
        # Nothing that the page loads may depend on the proxies of this machine.
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment.pop("PYTHONPATH", None)
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                ending_with_us(command), stdout=log, stderr=log, env=environment, cwd=folder
            )
        try:
            self._wait_for(port_file)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.url = f"http://127.0.0.1:{port_file.read_text().strip()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        """What the page has printed so far."""
        return self._log_path.read_text()

    def connections(self) -> set[str]:
        """Return the hosts that the process looked up or connected to, apart from gRPC's own connections."""
        if not self._connections_path.exists():
            return set()
        return set(self._connections_path.read_text().split())

    def _wait_for(self, port_file: Path) -> None:
        deadline = time.monotonic() + START_S
        while not port_file.exists():
            assert self.process.poll() is None, f"the page ended: {self.log}"
            assert time.monotonic() < deadline, f"the page did not start in {START_S} s: {self.log}"
            time.sleep(0.05)
