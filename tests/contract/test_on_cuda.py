"""The same tests over the CUDA provider: run again, in processes of their own, with servers on the GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.server_process import SOURCE

# On the wire and under faults; what is about the processor's threads or a lost GPU has its own servers.
FILES = (
    "tests/contract/test_protocol.py",
    "tests/contract/test_extensions.py",
    "tests/contract/test_encoded_images.py",
    "tests/contract/test_bad_requests.py",
    "tests/contract/test_limits.py",
    "tests/contract/test_model_control.py",
    "tests/contract/test_tritonclient.py",
    "tests/contract/test_logs.py",
    "tests/contract/test_prometheus.py",
    "tests/fault/test_made_up_requests.py",
    "tests/fault/test_failing_model.py",
    "tests/fault/test_traffic.py",
)


@pytest.mark.gpu
@pytest.mark.parametrize("file", FILES)
def test_passes_with_servers_on_the_gpu(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", file]
    ended = subprocess.run(
        command,
        cwd=SOURCE,
        env=os.environ | {"FOLDSERVE_TEST_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
