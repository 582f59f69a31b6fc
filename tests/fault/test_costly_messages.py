"""One message, whatever is in it, neither takes everybody's turn nor stays in memory once it is refused."""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.imaging import ImageSpec
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.costly_messages import CLASSIFY, INFER, INFER_STREAM, MESSAGES, SIDE, field
from tests.support.server_process import ServerProcess, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
# The default limit, less what a request has beside its pixels.
LARGE = 32 * MIB - 1024
# Of the server's processors, for one message; the dearest takes a quarter of it on an idle machine.
MOST_CPU_S = 1.0
MOST_KEPT_MIB = 100
NETWORK = TinyNetwork(image=ImageSpec("L", SIDE, SIDE, SIDE))
SOME = ("empty inputs", "parameters", "a long parameter", "dimensions", "as many as the shape says")
SOME += ("dark pixels", "empty inputs in a stream", "health")
LIMITLESS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    NETWORK.publish(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[ServerProcess]:
    with ServerProcess(repository, tmp_path_factory.mktemp("server"), "--transport", transport) as process:
        yield process


def cpu_s(server: ServerProcess) -> float:
    """Return the CPU time that the server has used so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def held_mib(server: ServerProcess) -> float:
    """Return the memory that the server holds."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def send(
    channel: grpc.Channel, path: str, content: bytes, compression: grpc.Compression | None = None
) -> str:
    """Send one message to whatever RPC; return the status that it ends with."""
    is_stream = "Stream" in path or "Reflection" in path
    try:
        if is_stream:
            list(channel.stream_stream(path)(iter([content]), timeout=120, compression=compression))
        else:
            channel.unary_unary(path)(content, timeout=120, compression=compression)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@contextmanager
def others_are_answered(server: ServerProcess) -> Iterator[None]:
    """Meanwhile call and probe the server as good callers do; every answer must be right."""
    images, stop, failures = NETWORK.random_images(2), threading.Event(), []
    expected = NETWORK.logits(images)

    def call() -> None:
        try:
            while not stop.wait(0.02):
                assert np.abs(outputs_of(server.infer(images))["logits"] - expected).max() < 1e-5
                with urllib.request.urlopen(f"http://{server.http_address}/healthz", timeout=30) as answer:
                    assert answer.status == 200
        except BaseException as error:
            failures.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        stop.set()
        caller.join()
    assert not failures


@pytest.mark.parametrize(
    "names",
    [pytest.param(SOME, id="some"), pytest.param(tuple(MESSAGES), id="all", marks=pytest.mark.slow)],
)
def test_no_message_takes_more_than_a_second(server: ServerProcess, names: tuple[str, ...]) -> None:
    took_s = {}
    with (
        grpc.insecure_channel(server.address, options=LIMITLESS) as channel,
        others_are_answered(server),
    ):
        for name in names:
            content = MESSAGES[name].make(LARGE)
            before_s = cpu_s(server)
            send(channel, MESSAGES[name].path, content)
            took_s[name] = cpu_s(server) - before_s
    assert {name: seconds for name, seconds in took_s.items() if seconds > MOST_CPU_S} == {}
    assert "Traceback" not in server.log


RAW = MESSAGES["raw pixels"].make(30 * MIB)
REFUSED = {
    "more pixels than the shape says": (INFER, RAW, "INVALID_ARGUMENT"),
    "an unknown model": (INFER, RAW + field(1, b"other"), "NOT_FOUND"),
    "empty inputs": (INFER, MESSAGES["empty inputs"].make(30 * MIB), "INVALID_ARGUMENT"),
    "more than the limit": (INFER, RAW + field(7, bytes(3 * MIB)), "RESOURCE_EXHAUSTED"),
    "a stream": (INFER_STREAM, RAW, "OK"),  # the refusal is in the answer
    "no picture": (CLASSIFY, field(1, b"tiny") + field(4, bytes(30 * MIB)), "INVALID_ARGUMENT"),
    "an unknown repository": (
        "/inference.GRPCInferenceService/RepositoryIndex",
        field(1, b"x" * 30 * MIB),
        "NOT_FOUND",
    ),
    "a model to load": (
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        field(2, b"x" * 30 * MIB),
        "NOT_FOUND",
    ),
    "a question of health": ("/grpc.health.v1.Health/Check", field(1, b"x" * 30 * MIB), "RESOURCE_EXHAUSTED"),
}


def assert_kept_little(server: ServerProcess, before_mib: float) -> None:
    """Wait, as long as a busy machine may need, until the server holds little more than before."""
    give_up_s = time.monotonic() + 20
    while (kept_mib := held_mib(server) - before_mib) > MOST_KEPT_MIB:
        assert time.monotonic() < give_up_s, f"{kept_mib:.0f} MiB were kept"
        time.sleep(0.1)


def test_refused_messages_are_not_kept_in_memory(repository: Path, tmp_path: Path, transport: str) -> None:
    """Not even until the garbage collector comes by, which may be long: here it never does."""
    flags = ("--transport", transport)
    module = "tests.support.uncollected_server"
    with (
        ServerProcess(repository, tmp_path / "server", *flags, module=module) as server,
        grpc.insecure_channel(server.address, options=LIMITLESS) as channel,
    ):
        server.infer(NETWORK.random_images(2))
        before_mib = held_mib(server)
        for path, content, status in REFUSED.values():
            for _ in range(6):
                assert send(channel, path, content) == status
            assert_kept_little(server, before_mib)


def test_decompressed_bombs_are_not_kept_in_memory(server: ServerProcess) -> None:
    """Native unpacks all of it before it refuses it."""
    server.infer(NETWORK.random_images(2))
    before_mib = held_mib(server)
    with grpc.insecure_channel(server.address, options=LIMITLESS) as channel:
        assert send(channel, INFER, bytes(256 * MIB), grpc.Compression.Gzip) == "RESOURCE_EXHAUSTED"
    assert_kept_little(server, before_mib)


def test_probes_are_answered_while_the_event_loop_is_blocked(
    repository: Path, tmp_path: Path, transport: str
) -> None:
    """As it does for as long as something holds it up; who probes must not take that for a dead server."""
    flags = ("--transport", transport)
    with ServerProcess(repository, tmp_path, *flags, module="tests.support.stuck_loop_server") as server:
        call = server.stub.ServerMetadata.future(pb.ServerMetadataRequest(), timeout=120)
        while not (tmp_path / "waiting").exists():
            assert not call.done()
            time.sleep(0.01)
        for page in ("healthz", "readyz", "metrics"):
            with urllib.request.urlopen(f"http://{server.http_address}/{page}", timeout=60) as answer:
                assert answer.status == 200
        assert not call.done()
        (tmp_path / "go").touch()
        assert call.result().name == "foldserve"
