"""Decoding processes that are killed under load: each loses the pictures it holds, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from PIL import Image

from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc
from tests.support.artifacts import TinyNetwork
from tests.support.crafted import encode
from tests.support.process_tree import children_of, runs, wait_until
from tests.support.scrape import scrape
from tests.support.server_process import ServerProcess, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes by /proc")

NETWORK = TinyNetwork(seed=2)
PIXELS = NETWORK.random_images(8)
PICTURES = [encode(Image.fromarray(image[0])) for image in PIXELS]
LOST = "the processes that decoded the request's images ended"


@pytest.fixture
def server(tmp_path: Path, transport: str) -> Iterator[ServerProcess]:
    NETWORK.publish(tmp_path / "models" / "tiny")
    with ServerProcess(tmp_path / "models", tmp_path / "server", "--transport", transport) as process:
        yield process


class Pictures:
    """Sends pictures, and knows the right answers from the same pixels sent as tensors."""

    def __init__(self, server: ServerProcess) -> None:
        self._stub = classifier_pb2_grpc.ClassifierStub(server.channel)
        probabilities = outputs_of(server.infer(PIXELS))["probabilities"]
        self._expected = [(int(row.argmax()), float(row.max())) for row in probabilities]

    def is_answered(self, first: int, count: int = 1) -> bool:
        """Send ``count`` pictures; return False if their process was lost, and fail for any other error."""
        which = [(first + index) % len(PICTURES) for index in range(count)]
        request = classifier_pb2.ClassifyRequest(
            model_name="tiny", images=[PICTURES[index] for index in which]
        )
        call = self._stub.Classify.future(request, timeout=60)
        if call.exception() is not None:
            assert call.code() == grpc.StatusCode.INTERNAL
            assert call.details().startswith(LOST)
            return False
        answer = call.result()
        labels = [(result.labels[0].index, result.labels[0].probability) for result in answer.results]
        assert labels == [self._expected[index] for index in which]
        return True


def decoders_of(server: ServerProcess) -> list[int]:
    """Return the processes that decode, without the one that they are forks of."""
    return [fork for launcher in children_of(server.process.pid) for fork in children_of(launcher)]


def test_killed_decoders_lose_their_pictures_and_no_others(server: ServerProcess) -> None:
    pictures = Pictures(server)
    expected = outputs_of(server.infer(PIXELS[:1]))
    killed, stopped = [], threading.Event()

    def kill() -> None:
        chance = random.Random(1)
        while not stopped.wait(0.02):
            if found := decoders_of(server):
                killed.append(chance.choice(found))
                with contextlib.suppress(ProcessLookupError):  # it has been killed already
                    os.kill(killed[-1], signal.SIGKILL)

    def send(first: int) -> int:
        return sum(not pictures.is_answered(first + number, 1 + number % 5) for number in range(150))

    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(4) as pool:
        lost = pool.map(send, range(4))
        for _ in range(200):  # pixels, whom none of this concerns
            outputs = outputs_of(server.infer(PIXELS[:1]))
            assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
        lost_count = sum(lost)
    stopped.set()
    killer.join()
    assert killed
    assert 2 * lost_count <= len(killed), "a request is lost with the second process that it ends"
    wait_until(lambda: not any(map(runs, killed)))
    assert all(pictures.is_answered(number) for number in range(40)), "none is sent to a process that ended"


def test_a_killed_launcher_is_replaced(server: ServerProcess) -> None:
    pictures = Pictures(server)
    wait_until(lambda: pictures.is_answered(0) and bool(decoders_of(server)))
    (launcher,) = children_of(server.process.pid)
    family = [launcher, *decoders_of(server)]
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: not any(map(runs, family)))
    wait_until(lambda: pictures.is_answered(1, 3) and bool(decoders_of(server)))


def test_a_signal_to_all_processes_lets_accepted_pictures_be_answered(server: ServerProcess) -> None:
    """As a service manager stops a service, or Ctrl-C a program in a terminal."""
    pictures = Pictures(server)
    wait_until(lambda: pictures.is_answered(0) and bool(decoders_of(server)))
    (launcher,) = children_of(server.process.pid)
    family = [launcher, *decoders_of(server)]
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    request = classifier_pb2.ClassifyRequest(model_name="tiny", images=PICTURES)
    for number in family[1:]:
        os.kill(number, signal.SIGSTOP)  # so that pictures are being decoded when the signal comes
    calls = [stub.Classify.future(request, timeout=60) for _ in range(4)]
    wait_until(
        lambda: scrape(server).value("foldserve_decoding_bytes") > 0 or all(call.done() for call in calls)
    )
    for number in (*family, server.process.pid):
        os.kill(number, signal.SIGTERM)
    wait_until(lambda: "draining" in server.log)
    for number in family[1:]:
        os.kill(number, signal.SIGCONT)
    assert server.process.wait(60) == 0
    for call in calls:
        if call.exception() is None:
            assert len(call.result().results) == len(PICTURES)
        else:  # it came when the server drained already
            assert call.code() == grpc.StatusCode.UNAVAILABLE
    assert "were lost" not in server.log
    wait_until(lambda: not any(map(runs, family)))
