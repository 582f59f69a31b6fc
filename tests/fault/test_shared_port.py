"""Several servers on one port (--reuse-port): each has connections, and one that dies costs no answer."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.demo.children import ending_with_us
from foldserve.serving.client import channel
from foldserve.serving.client.sync_client import Client
from foldserve.serving.pb import open_inference_pb2_grpc
from tests.fault.test_surroundings import has_ipv6
from tests.support.artifacts import TinyNetwork
from tests.support.endless import EndlessNetwork, publish_unproven
from tests.support.scrape import scrape
from tests.support.server_process import SOURCE, ServerProcess, infer_request, run_cli

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = 100  # each client's after one of the servers has ended
WAIT_S = 30.0
# The kernel throws a coin for each connection: that so many fall on one of two servers does not happen.
MOST_CONNECTIONS = 100


@pytest.fixture
def network() -> TinyNetwork:
    return TinyNetwork()


@pytest.fixture
def pair(
    tmp_path: Path, network: TinyNetwork, transport: str
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers of one repository on one port."""
    network.publish(tmp_path / "models" / "tiny")
    flags = ("--transport", transport, "--reuse-port", "--poll-s", "0.1")
    with ServerProcess(tmp_path / "models", tmp_path / "first", *flags) as first:
        port = first.address.rpartition(":")[2]
        with ServerProcess(tmp_path / "models", tmp_path / "second", *flags, "--port", port) as second:
            assert second.address == first.address
            yield first, second


@pytest.fixture
def own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each client one: gRPC would give all channels of this process to one address a single one."""
    options = (*channel._CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    monkeypatch.setattr(channel, "_CHANNEL_OPTIONS", options)


@pytest.fixture
def clients(pair: tuple[ServerProcess, ServerProcess], own_connections: None) -> Iterator[list[Client]]:
    """As many clients as it takes for both servers to have two of them at least."""
    with connect_until_both_have_two(pair, pair[0].address) as opened:
        yield opened


@contextlib.contextmanager
def connect_until_both_have_two(
    pair: tuple[ServerProcess, ServerProcess], address: str
) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        opened: list[Client] = []
        while min(connections(server) for server in pair) < 2:
            assert len(opened) < MOST_CONNECTIONS, "one server has all connections"
            opened.append(stack.enter_context(Client(address, connect_timeout_s=WAIT_S)))
        yield opened


def connections(server: ServerProcess) -> float:
    return scrape(server).value("foldserve_connections")


def executions(server: ServerProcess) -> float:
    return scrape(server).total("foldserve_executions_total")


def call_times(client: Client, network: TinyNetwork, count: int) -> None:
    images = network.random_images(3)
    for _ in range(count):
        assert np.abs(client.infer("tiny", images)["logits"] - network.logits(images)).max() < 1e-5


def test_both_answer_and_each_counts_its_own(
    pair: tuple[ServerProcess, ServerProcess], clients: list[Client], network: TinyNetwork
) -> None:
    for client in clients:
        call_times(client, network, 1)
    counts = [executions(server) for server in pair]
    assert min(counts) >= 2
    assert sum(counts) == len(clients)
    assert sum(map(connections, pair)) == len(clients)


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_both_addresses_of_localhost_are_shared(
    tmp_path: Path, network: TinyNetwork, transport: str, address: str, own_connections: None
) -> None:
    if not has_ipv6():
        pytest.skip("needs IPv6 on loopback")
    network.publish(tmp_path / "models" / "tiny")
    flags = ("--transport", transport, "--reuse-port", "--host", "localhost")
    with ServerProcess(tmp_path / "models", tmp_path / "first", *flags) as first:
        port = first.address.rpartition(":")[2]
        with (
            ServerProcess(tmp_path / "models", tmp_path / "second", *flags, "--port", port) as second,
            connect_until_both_have_two((first, second), f"{address}:{port}") as opened,
        ):
            for client in opened:
                call_times(client, network, 1)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
def test_a_server_that_ends_under_load_costs_no_caller_an_answer(
    pair: tuple[ServerProcess, ServerProcess],
    clients: list[Client],
    network: TinyNetwork,
    end: signal.Signals,
) -> None:
    with futures.ThreadPoolExecutor(len(clients)) as threads:
        before = [executions(server) for server in pair]
        running = [threads.submit(call_times, client, network, CALLS) for client in clients]
        give_up_s = time.monotonic() + WAIT_S
        while any(executions(server) == count for server, count in zip(pair, before, strict=True)):
            assert time.monotonic() < give_up_s, "both servers run"
        pair[0].process.send_signal(end)
        for calls in running:
            calls.result(timeout=2 * WAIT_S)
    if end == signal.SIGTERM:
        assert pair[0].process.wait(timeout=WAIT_S) == 0
    assert connections(pair[1]) == len(clients), "all have gone over to the one that is left"


def test_each_follows_the_repository(pair: tuple[ServerProcess, ServerProcess], tmp_path: Path) -> None:
    TinyNetwork(seed=2).publish(tmp_path / "models" / "tiny")
    give_up_s = time.monotonic() + WAIT_S
    while not all(
        scrape(server).value("foldserve_model_ready", model="tiny", version="2") for server in pair
    ):
        assert time.monotonic() < give_up_s, "both serve the new version"
        time.sleep(0.05)


def test_one_that_joins_takes_no_call_before_it_can_answer(
    tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    """Callers that connect for each call, and never try again, while the second server starts."""
    network.publish(tmp_path / "models" / "tiny")
    request = infer_request(network.random_images(1))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    done = threading.Event()

    def call_until_done(address: str) -> None:
        while not done.is_set():
            with grpc.insecure_channel(address, options=options) as channel:
                open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=WAIT_S)

    flags = ("--transport", transport, "--reuse-port")
    with (
        ServerProcess(tmp_path / "models", tmp_path / "first", *flags) as first,
        futures.ThreadPoolExecutor(4) as threads,
    ):
        callers = [threads.submit(call_until_done, first.address) for _ in range(4)]
        try:
            port = first.address.rpartition(":")[2]
            with ServerProcess(tmp_path / "models", tmp_path / "second", *flags, "--port", port) as second:
                give_up_s = time.monotonic() + WAIT_S
                while not executions(second):
                    assert not any(caller.done() for caller in callers), "none failed"
                    assert time.monotonic() < give_up_s, "the second one has its share"
                done.set()
                for caller in callers:
                    caller.result(timeout=WAIT_S)
        finally:
            done.set()


def test_one_that_is_stopped_while_it_loads_has_never_listened(
    tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    """It would answer for want of a model what another server of the port could serve."""
    network.publish(tmp_path / "models" / "tiny")
    publish_unproven(EndlessNetwork(of_input=True), tmp_path / "models" / "endless")
    command = [
        sys.executable,
        "-m",
        "foldserve",
        "serve",
        "--repository",
        str(tmp_path / "models"),
        "--device",
        "cpu",
    ]
    command += ["--port", "0", "--metrics-port", "0", "--reuse-port", "--transport", transport]
    command += ["--load-timeout-s", "86400", "--port-file", str(tmp_path / "port")]
    with subprocess.Popen(ending_with_us(command), stderr=subprocess.PIPE, text=True, cwd=SOURCE) as server:
        try:
            give_up_s = time.monotonic() + WAIT_S
            while not catches_sigterm(server.pid):
                assert time.monotonic() < give_up_s, "it has come to loading"
                time.sleep(0.02)
            server.terminate()
            _, log = server.communicate(timeout=WAIT_S)
        finally:
            server.kill()
    assert server.returncode == 0, log
    assert not (tmp_path / "port").exists()


def catches_sigterm(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_both_must_be_told(pair: tuple[ServerProcess, ServerProcess], tmp_path: Path) -> None:
    """A second server without the flag, or beside one without it, would take half of another's traffic."""
    port = pair[0].address.rpartition(":")[2]
    serve = ("serve", "--repository", str(tmp_path / "models"), "--metrics-port", "0")
    for transport in ("grpcio", "native"):
        ended = run_cli(*serve, "--port", port, "--transport", transport)
        assert ended.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
        assert "give --reuse-port to all servers of the port" in ended.stderr


def test_a_port_that_is_not_shared_stays_its_server_s(
    tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    network.publish(tmp_path / "models" / "tiny")
    with ServerProcess(tmp_path / "models", tmp_path / "alone", "--transport", transport) as server:
        port = server.address.rpartition(":")[2]
        serve = ("serve", "--repository", str(tmp_path / "models"), "--metrics-port", "0")
        ended = run_cli(*serve, "--port", port, "--reuse-port", "--transport", transport)
        assert ended.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
        images = network.random_images(2)
        assert server.infer(images).model_name == "tiny"
