"""Hang-ups, deadlines, overload and signals, on a real server process; each ends with an ordinary request."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.held_server import HeldServer
from tests.support.repository_changes import eventually
from tests.support.scrape import scrape
from tests.support.server_process import ServerProcess, infer_request, outputs_of, run_cli, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ONE_BY_ONE = ("--max-batch-size", "1", "--transport")
DROPPED = "foldserve_requests_dropped_total"


@pytest.fixture(scope="module")
def network() -> TinyNetwork:
    return TinyNetwork()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, network: TinyNetwork) -> Path:
    folder = tmp_path_factory.mktemp("models")
    network.publish(folder / "tiny")
    return folder


@pytest.fixture
def server(repository: Path, tmp_path: Path, transport: str) -> Iterator[HeldServer]:
    flags = (*ONE_BY_ONE, transport, "--max-queue-rows", "100", "--max-message-mib", "16")
    with HeldServer(repository, tmp_path / "server", *flags) as process:
        yield process


def assert_serves(server: ServerProcess, network: TinyNetwork) -> None:
    images = network.random_images(2)
    assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5


def keep_busy(server: HeldServer, images: NDArray[np.uint8]) -> grpc.Future:
    """Ask for ``images``, hold the model at the first of them, and return the call once it is held."""
    server.hold()
    call = server.stub.ModelInfer.future(infer_request(images), timeout=60)
    server.wait_until_held()
    return call


def wait_for_pending(server: ServerProcess, count: int) -> None:
    def pending() -> float:
        return scrape(server).total("foldserve_pending_requests")

    eventually(lambda: pending() == count, f"{count} requests wait")


def wait_for_what_was_sent(channel: grpc.Channel) -> None:
    """Return once the server has seen what was sent over ``channel`` before, cancellations too: they have no
    answer, but come before the questions that follow them, several for threads to have handed them on."""
    ask = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    for _ in range(20):
        ask(b"", timeout=30)


def test_full_queue_refuses_at_once_and_recovers(server: HeldServer, network: TinyNetwork) -> None:
    large = keep_busy(server, network.random_images(200))  # taken by an empty queue, which is then over-full
    code, text = status_of(lambda: server.infer(network.random_images(2)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the queue is full" in text
    assert scrape(server).total(DROPPED, reason="rejected") == 1
    single = server.stub.ModelInfer.future(infer_request(network.random_images(1)), timeout=60)
    wait_for_pending(server, 1)  # a lone image is not shut out by large requests
    server.release()
    assert outputs_of(single.result())["logits"].shape == (1, 3)
    assert outputs_of(large.result())["logits"].shape == (200, 3)
    assert_serves(server, network)


def test_queue_is_bounded_in_bytes_too(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    flags = ("--transport", transport, "--max-queue-mib", "1", "--max-queue-rows", "1000000")
    with HeldServer(repository, tmp_path / "server", *flags) as server:
        large = keep_busy(server, network.random_images(16_000))  # 1,024,000 bytes
        code, text = status_of(lambda: server.infer(network.random_images(1000)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"({2**20} bytes) may wait" in text
        assert "--max-queue-mib" in text
        server.release()
        assert outputs_of(large.result())["logits"].shape == (16_000, 3)
        assert_serves(server, network)


def test_deadline_passing_in_the_queue_ends_the_wait(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    with HeldServer(repository, tmp_path / "server", *ONE_BY_ONE, transport) as server:
        large = keep_busy(server, network.random_images(10))
        code, _ = status_of(
            lambda: server.stub.ModelInfer(infer_request(network.random_images(1)), timeout=0.2)
        )
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        server.release()
        large.result()
        assert_serves(server, network)


def test_expired_and_cancelled_requests_never_reach_the_model(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    """The server's own count of rows tells: callers who gave up while they waited cost nothing.

    They have a connection of their own, and are few: native closes a connection, with every call on it, where
    more than 20 calls are given up before it took them up.
    """
    with HeldServer(repository, tmp_path / "server", *ONE_BY_ONE, transport) as server:
        large = keep_busy(server, network.random_images(10))
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options=options) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            request = infer_request(network.random_images(1)).SerializeToString()
            expired = [ask.future(request, timeout=0.2) for _ in range(10)]
            cancelled = [ask.future(request) for _ in range(10)]
            assert {call.code() for call in expired} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            for call in cancelled:
                call.cancel()
            wait_for_what_was_sent(channel)
        server.release()
        large.result()
        assert_serves(server, network)
        (counted,) = server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
        assert counted.inference_count == 10 + 2
        assert counted.inference_stats.success.count == 2


def test_timeout_parameter_bounds_the_wait_in_the_queue(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    """Triton's `timeout`, in microseconds: alone, in a stream, and with a later deadline of the call."""
    with HeldServer(repository, tmp_path / "server", *ONE_BY_ONE, transport) as server:
        large = keep_busy(server, network.random_images(10))
        request = infer_request(network.random_images(1), parameters={"timeout": {"int64_param": 1000}})
        alone = server.stub.ModelInfer.future(request, timeout=60)
        answers = server.stub.ModelStreamInfer(iter([request]))
        wait_for_pending(server, 2)
        time.sleep(0.01)  # at least: the timeout is over
        server.release()
        code, text = status_of(alone.result)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert text == "the deadline passed while the request waited in the queue"
        assert [answer.error_message for answer in answers] == [text]
        large.result()
        assert_serves(server, network)
        (counted,) = server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
        assert counted.inference_stats.fail.count == 2


def test_pending_expired_and_cancelled_requests_are_counted(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    """Ten of each wait behind a large one, seen to wait; then the one kind expires, the other hangs up."""
    with HeldServer(repository, tmp_path / "server", *ONE_BY_ONE, transport) as server:
        large = keep_busy(server, network.random_images(10))
        expiring_request = infer_request(network.random_images(2))
        expiring_request.parameters["timeout"].int64_param = 1000  # microseconds, on the server's own clock
        expiring = [server.stub.ModelInfer.future(expiring_request) for _ in range(10)]
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options=options) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            request = infer_request(network.random_images(1)).SerializeToString()
            cancelled = [ask.future(request) for _ in range(10)]
            wait_for_pending(server, 20)
            assert scrape(server).total("foldserve_pending_rows") >= 30
            for call in cancelled:
                call.cancel()
            wait_for_what_was_sent(channel)
        server.release()
        large.result()
        assert {call.code() for call in expiring} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert_serves(server, network)
        samples = scrape(server)
        for reason in ("expired", "cancelled"):
            assert samples.total(DROPPED, reason=reason, model="tiny") == 10
        assert samples.total("foldserve_pending_requests") == 0


def test_hang_ups_do_not_affect_other_callers(server: HeldServer, network: TinyNetwork) -> None:
    for _ in range(5):
        server.stub.ModelInfer.future(infer_request(network.random_images(2000))).cancel()
    eventually(lambda: is_answered(server, network), "the dropped requests have left the queue")
    keep_busy(server, network.random_images(2000)).cancel()
    server.release()
    eventually(lambda: is_answered(server, network), "the dropped requests have left the queue")
    assert_serves(server, network)
    assert "Traceback" not in server.log


def is_answered(server: ServerProcess, network: TinyNetwork) -> bool:
    """Ask once: refused only until dropped rows have left the queue.

    With two images, since a full queue still takes a request of one.
    """
    try:
        server.infer(network.random_images(2))
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


def test_oversized_message_is_refused(server: ServerProcess, network: TinyNetwork) -> None:
    code, text = status_of(lambda: server.infer(np.zeros((2**18 + 1, 1, 8, 8), np.uint8)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"at most {16 * 2**20}:" in text
    assert_serves(server, network)


def test_sigterm_under_load_answers_everything_it_accepted(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    """Every call ends with its right answer, or UNAVAILABLE: none is cut off, none waits for ever."""
    images = network.random_images(3)
    expected = network.logits(images)
    outcomes: Counter[str] = Counter()
    stopped = threading.Event()
    with ServerProcess(repository, tmp_path / "server", "--transport", transport) as server:

        def load() -> None:
            with grpc.insecure_channel(
                server.address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                call = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelInfer",
                    request_serializer=pb.ModelInferRequest.SerializeToString,
                    response_deserializer=pb.ModelInferResponse.FromString,
                )
                while not stopped.is_set():
                    try:
                        response = call(infer_request(images), timeout=20)
                    except grpc.RpcError as error:
                        outcomes[error.code().name] += 1
                        return
                    right = np.abs(outputs_of(response)["logits"] - expected).max() < 1e-5
                    outcomes["right" if right else "wrong"] += 1

        callers = [threading.Thread(target=load) for _ in range(8)]
        for caller in callers:
            caller.start()
        eventually(lambda: outcomes["right"] > 50, "all callers are answered")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        stopped.set()
        for caller in callers:
            caller.join(timeout=20)
            assert not caller.is_alive()
        assert set(outcomes) <= {"right", "UNAVAILABLE"}, (outcomes, server.log)
        assert outcomes["UNAVAILABLE"] <= len(callers)
        assert "Traceback" not in server.log


def test_accepted_request_is_finished_after_sigterm(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    images = network.random_images(200)
    with HeldServer(repository, tmp_path / "server", *ONE_BY_ONE, transport) as server:
        large = keep_busy(server, images)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "SIGTERM: draining" in server.log, "the signal is noticed")
        server.release()
        assert np.abs(outputs_of(large.result())["logits"] - network.logits(images)).max() < 1e-5
        assert server.process.wait(timeout=20) == 0


def test_second_signal_exits_at_once(
    repository: Path, tmp_path: Path, network: TinyNetwork, transport: str
) -> None:
    """The model is held for good: a server that waited for it would wait for the grace period of 30 s."""
    with HeldServer(repository, tmp_path / "server", *ONE_BY_ONE, transport) as server:
        large = keep_busy(server, network.random_images(200))
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "SIGTERM: draining" in server.log, "the signal is noticed")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 128 + signal.SIGTERM
        assert large.code() == grpc.StatusCode.UNAVAILABLE


def test_second_server_on_one_port_is_refused(
    server: ServerProcess, repository: Path, network: TinyNetwork
) -> None:
    port = server.address.rpartition(":")[2]
    ended = run_cli("serve", "--repository", str(repository), "--port", port)
    assert ended.returncode == 1
    assert f"foldserve serve: cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert_serves(server, network)


def test_missing_repository_ends_with_one_error_line(tmp_path: Path) -> None:
    ended = run_cli("serve", "--repository", str(tmp_path / "nowhere"), "--port", "0")
    assert ended.returncode == 1
    assert "nowhere cannot be read" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="needs a machine without an NVIDIA driver")
def test_missing_cuda_device_stops_the_start(repository: Path) -> None:
    ended = run_cli("serve", "--repository", str(repository), "--port", "0", "--device", "cuda")
    assert ended.returncode == 1
    assert "cuda" in ended.stderr.lower()
    assert "Traceback" not in ended.stderr
