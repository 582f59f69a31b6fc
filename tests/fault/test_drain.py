"""SIGTERM under real load, every answer counted: health first, then a delay, then the drain."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.demo.children import ending_with_us
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.process_tree import children_of
from tests.support.repository_changes import eventually
from tests.support.scrape import get, scrape
from tests.support.server_process import SOURCE, ServerProcess, outputs_of, status_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyNetwork().publish(folder / "tiny")
    return folder


def start_load(server: ServerProcess, connections: int, pause_ms: int) -> subprocess.Popen[str]:
    """Start a client process and return once all its connections are being answered."""
    command = [sys.executable, "-m", "tests.support.load_script", server.address]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    client = subprocess.Popen(
        ending_with_us([*command, connections, pause_ms]),
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "loading\n"
    return client


def outcomes_of(client: subprocess.Popen[str]) -> dict[str, int]:
    output, _ = client.communicate(timeout=60)
    assert client.returncode == 0
    outcomes: dict[str, int] = json.loads(output)
    return outcomes


def answered_count(server: ServerProcess) -> int:
    """What the server says at its end of the requests that it answered."""
    found = re.search(r"drained: (\d+) requests were answered", server.log)
    assert found, server.log
    return int(found.group(1))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_no_accepted_request_is_lost_under_load(
    repository: Path, tmp_path: Path, transport: str, sent: signal.Signals
) -> None:
    """Forty connections of another process: each call got its right answer or word of the drain, and exactly
    as many right answers arrived as the server says it gave. A call that comes as the port closes, and was
    not accepted, may hear so from the transport's library instead of us.
    """
    flags = ("--transport", transport, "--drain-delay-s", "0.5")
    # The tests may run below nohup.
    prefix = ("env", "--default-signal=HUP")
    with ServerProcess(repository, tmp_path / "server", *flags, prefix=prefix) as server:
        client = start_load(server, connections=40, pause_ms=50)
        server.process.send_signal(sent)
        assert server.process.wait(timeout=20) == 0
        outcomes = outcomes_of(client)
        closing = {told for told in outcomes if told.startswith(("UNAVAILABLE: ", "CANCELLED: "))}
        assert set(outcomes) - closing <= {"right", "draining", "connection refused"}, (outcomes, server.log)
        assert outcomes["right"] == answered_count(server) >= 40, "each connection had an answer before"


@pytest.mark.slow
def test_callers_that_retry_at_once_do_not_delay_the_drain(
    repository: Path, tmp_path: Path, transport: str
) -> None:
    """The server is never quiet; it must end long before its grace period does, and lose nothing accepted."""
    with ServerProcess(repository, tmp_path / "server", "--transport", transport) as server:
        client = start_load(server, connections=100, pause_ms=0)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        outcomes = outcomes_of(client)
        assert outcomes["right"] == answered_count(server) >= 100
        assert "wrong" not in outcomes
        statuses = {outcome.partition(":")[0] for outcome in outcomes if ":" in outcome}
        assert statuses <= {"UNAVAILABLE", "CANCELLED"}, outcomes


def test_drain_delay_answers_calls_and_reports_not_ready(
    repository: Path, tmp_path: Path, transport: str
) -> None:
    network = TinyNetwork()
    images = network.random_images(2)
    flags = ("--transport", transport, "--drain-delay-s", "60")
    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        health = health_pb2_grpc.HealthStub(server.channel)

        def is_healthy(service: str) -> bool:
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            return bool(status == health_pb2.HealthCheckResponse.SERVING)

        assert is_healthy("")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: not is_healthy(""), "health says that it leaves")
        assert not is_healthy("tiny")
        assert is_healthy("grpc.health.v1.Health"), "it answers; nobody should kill it now"
        assert not server.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert not server.stub.ModelReady(pb.ModelReadyRequest(name="tiny")).ready
        assert server.stub.ServerLive(pb.ServerLiveRequest()).live
        assert get(server, "/readyz") == (503, "not ready: draining\n")
        assert get(server, "/healthz") == (200, "live\n")
        samples = scrape(server)
        assert (samples.value("foldserve_ready"), samples.value("foldserve_draining")) == (0, 1)
        for _ in range(3):
            assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5
        server.process.send_signal(signal.SIGTERM)  # the second one does not wait for the delay to end
        assert server.process.wait(timeout=20) == 128 + signal.SIGTERM


def test_a_failed_request_is_logged_with_its_id_and_answered_without_details(
    repository: Path, tmp_path: Path, transport: str
) -> None:
    """An execution fails by an injected fault; only whose image did it is answered INTERNAL."""
    network = TinyNetwork()
    image = network.random_images(1)
    failing = image.copy()
    failing[:, 0, 0, 0] = 255
    flags = ("--transport", transport, "--log-format", "json")
    module = "tests.support.failing_server"
    with ServerProcess(repository, tmp_path / "server", *flags, module=module) as server:
        code, text = status_of(lambda: server.infer(failing, id="the-failing-one"))
        assert (code, text) == (
            grpc.StatusCode.INTERNAL,
            "internal error; the server's log has the details",
        )
        assert np.abs(outputs_of(server.infer(image))["logits"] - network.logits(image)).max() < 1e-5
        faults = [json.loads(line) for line in server.log.splitlines() if '"error"' in line]
        assert [(fault["request_id"], fault["model"], fault["version"]) for fault in faults] == [
            ("the-failing-one", "tiny", "1")
        ]
        assert "RuntimeError: the injected fault" in faults[0]["traceback"]
        labels = {"model": "tiny", "version": "1", "method": "ModelInfer", "code": "INTERNAL"}
        assert scrape(server).value("foldserve_requests_total", **labels) == 1


def test_below_nohup_a_closed_terminal_changes_nothing(repository: Path, tmp_path: Path) -> None:
    with ServerProcess(repository, tmp_path / "server", prefix=("nohup",)) as server:
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
            request = health_pb2.HealthCheckRequest(service="tiny")
            answer = health_pb2_grpc.HealthStub(server.channel).Check(request, timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0


def test_the_first_process_of_a_container_ends_while_it_starts(repository: Path, tmp_path: Path) -> None:
    """The kernel drops a SIGTERM that such a process does not handle; the server drains, and ends with 0."""
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare on the path")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces, which this machine forbids")
    command = [*unshare, sys.executable, "-m", "foldserve", "serve", "--repository", str(repository)]
    flags = ["--port", "0", "--no-metrics", "--device", "cpu"]
    process = subprocess.Popen(
        ending_with_us([*command, *flags]), env=os.environ | {"PYTHONPATH": str(SOURCE)}, cwd=tmp_path
    )
    while process.poll() is None:
        for child in children_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        time.sleep(0.02)
    assert process.returncode == 128 + signal.SIGTERM
