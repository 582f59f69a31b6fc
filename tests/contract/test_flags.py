"""Settings of the server that show on the wire."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, outputs_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--max-queue-delay-ms", "5"), id="delay"),
        pytest.param(("--batch-invariant",), id="batch invariant"),
        pytest.param(("--instances", "3"), id="three instances"),
        pytest.param(("--intra-op-threads", "2"), id="two threads"),
    ],
)
def test_answers_are_right_with_every_setting(
    repository: Path, tmp_path: Path, network: TinyNetwork, flags: tuple[str, ...]
) -> None:
    """Forty callers at once, over the transport that auto chooses; the settings are published."""

    def ask(index: int) -> float:
        images = network.random_images(1 + index % 5, seed=index)
        return float(np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max())

    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        with ThreadPoolExecutor(16) as callers:
            assert max(callers.map(ask, range(40))) < 1e-5
        config = server.stub.ModelConfig(pb.ModelConfigRequest(name="tiny")).config
    expected_delay_us = 5000 if "--max-queue-delay-ms" in flags else 0
    assert config.dynamic_batching.max_queue_delay_microseconds == expected_delay_us
    assert config.instance_group[0].count == (3 if "--instances" in flags else 1)
    expected_threads = "2" if "--intra-op-threads" in flags else "1"
    assert config.parameters["intra_op_threads"].string_value == expected_threads
    assert "transport native" in server.log, "auto takes native where it is installed and callers are trusted"


@pytest.mark.parametrize(
    ("flags", "transport", "logged"),
    [
        pytest.param((), "grpcio", "transport grpcio: native would take a quarter", id="auto"),
        pytest.param(("--trust-callers",), "native", "transport native: no TLS", id="trusted"),
        pytest.param(
            ("--transport", "native"), "native", "anyone who reaches 0.0.0.0 can end this server", id="native"
        ),
        pytest.param(("--transport", "grpcio"), "grpcio", "anyone who reaches 0.0.0.0 may call", id="grpcio"),
    ],
)
def test_native_serves_other_machines_only_with_trust_callers(
    repository: Path, tmp_path: Path, flags: tuple[str, ...], transport: str, logged: str
) -> None:
    network = TinyNetwork(seed=2)
    images = network.random_images(2)
    with ServerProcess(repository, tmp_path / "server", "--host", "0.0.0.0", *flags) as server:
        assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5
        assert logged in server.log
        assert ("can end this server" in server.log) == (flags == ("--transport", "native"))
        with urllib.request.urlopen(f"http://{server.http_address}/metrics", timeout=20) as page:
            assert f'transport="{transport}"' in page.read().decode()
