"""The README's three jobs, typed in order by a newcomer in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from demo.children import ending_with_us
from tests.serving.repository_changes import eventually

ROOT = Path(__file__).parents[2]


def commands_of_the_three_jobs() -> list[list[str]]:
    section = (ROOT / "README.md").read_text().partition("## Three jobs")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("foldserve ")]


def test_the_jobs_are_there() -> None:
    names = [words[1] for words in commands_of_the_three_jobs()]
    assert names == ["train", "export", "models", "models", "serve", "classify"]


@pytest.mark.slow
def test_each_command_finds_what_those_before_it_left(tmp_path: Path) -> None:
    """Only the number of epochs and the ports are others, set as an operator may."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"FOLDSERVE_TRAIN_EPOCHS": "1", "FOLDSERVE_SERVE_PORT": str(port)}
    settings |= {"FOLDSERVE_SERVE_METRICS_PORT": "0", "FOLDSERVE_CLASSIFY_SERVER": f"127.0.0.1:{port}"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    log = tmp_path / "server.log"
    server: subprocess.Popen[bytes] | None = None
    try:
        for words in commands_of_the_three_jobs():
            files = [sorted(map(str, tmp_path.glob(word))) if "*" in word else [word] for word in words]
            command = [sys.executable, "-m", "foldserve", *(each for found in files[1:] for each in found)]
            if words[1] == "serve":
                with log.open("wb") as stream:
                    server = subprocess.Popen(
                        ending_with_us(command), cwd=tmp_path, env=environment, stdout=stream, stderr=stream
                    )
                eventually(lambda: "serving on" in log.read_text(), "the model is served")
                continue
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        assert done.stdout.count("samples/") == 10, done.stdout
    finally:
        if server is not None:
            server.terminate()
            server.wait(timeout=60)
