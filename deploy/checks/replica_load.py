"""Keeps asking a server for the logits of known images, and counts answers that are wrong or never come."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from benchmarks.serving.networks import lenet
from foldserve.artifact.format import IMAGE, LOGITS
from foldserve.runtime.session import Session
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_DEADLINE_S = 60.0
_IMAGES = 64
# The client tries nothing again: what is lost on the way is seen.
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))


@dataclass
class Tally:
    """What became of the calls."""

    right: int = 0
    wrong: int = 0
    lost: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


class Questions:
    """LeNet in ``folder``/lenet-only, 64 requests of one image each, and the logits that answer them."""

    def __init__(self, folder: Path) -> None:
        network = lenet(folder)
        self.repository = network.repository
        images = network.images(_IMAGES)
        session = Session(network.model_file.read_bytes(), device="cpu", intra_op_threads=1)
        self._expected = session.run((LOGITS,), {IMAGE: images})[0]
        self._tolerance = 1e-5 * float(np.abs(self._expected).max())
        self.messages = []
        for image in images:
            request = pb.ModelInferRequest(model_name=network.name)
            request.inputs.add(name=IMAGE, datatype="UINT8", shape=(1, *image.shape))
            request.raw_input_contents.append(image.tobytes())
            self.messages.append(request.SerializeToString())
        others = np.abs(self._expected[1:] - self._expected[0]).max(axis=1)
        assert others.min() > 10 * self._tolerance, "an answer to another image must be seen"

    def is_right(self, number: int, answer: bytes) -> bool:
        """Tell whether ``answer`` has the logits of image ``number``."""
        response = pb.ModelInferResponse.FromString(answer)
        names = [output.name for output in response.outputs]
        logits = np.frombuffer(response.raw_output_contents[names.index(LOGITS)], np.float32)
        expected = self._expected[number]
        return logits.shape == expected.shape and float(np.abs(logits - expected).max()) <= self._tolerance


class Callers:
    """Threads that call one address, each over a connection of its own, for a block.

    Each waits ``pause_s`` after an answer.
    """

    def __init__(
        self,
        address: str,
        certificate: bytes | None,
        questions: Questions,
        count: int,
        pause_s: float = 0.0,
    ) -> None:
        self.tally = Tally()
        self._pause_s = pause_s
        self._address, self._certificate, self._questions = address, certificate, questions
        self._stopping, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(count)]

    def __enter__(self) -> Callers:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the calls under way end, and the threads with them."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self, first: int) -> None:
        with _open(self._address, self._certificate) as channel:
            ask = channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
            for number in itertools.count(first):
                if self._stopping.is_set():
                    return
                number %= _IMAGES  # noqa: PLW2901
                started_s = time.monotonic()
                try:
                    answer = ask(self._questions.messages[number], timeout=_DEADLINE_S)
                except grpc.RpcError as error:
                    with self._lock:
                        self.tally.lost.append(f"{error.code().name}: {error.details()}")
                    time.sleep(0.05)  # a server that is gone refuses at once
                    continue
                taken_s = time.monotonic() - started_s
                is_right = self._questions.is_right(number, answer)
                with self._lock:
                    self.tally.right += is_right
                    self.tally.wrong += not is_right
                    self.tally.slowest_s = max(self.tally.slowest_s, taken_s)
                self._stopping.wait(self._pause_s)


class Crowd:
    """``count`` calls that are sent at once, over ``connections``, when the block begins, and end with it."""

    def __init__(
        self, address: str, certificate: bytes, questions: Questions, count: int, connections: int
    ) -> None:
        self.tally = Tally()
        self._questions, self._count = questions, count
        self._channels = [_open(address, certificate) for _ in range(connections)]
        self._calls: list[Any] = []

    def __enter__(self) -> Crowd:
        """Connect, and send all calls."""
        methods = []
        for channel in self._channels:
            grpc.channel_ready_future(channel).result(_DEADLINE_S)
            methods.append(
                channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
            )
        for number in range(self._count):
            message = self._questions.messages[number % _IMAGES]
            self._calls.append(methods[number % len(methods)].future(message, timeout=_DEADLINE_S))
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the answers and count them."""
        for number, call in enumerate(self._calls):
            try:
                is_right = self._questions.is_right(number % _IMAGES, call.result())
            except grpc.RpcError as error:
                self.tally.lost.append(f"{error.code().name}: {error.details()}")
                continue
            self.tally.right += is_right
            self.tally.wrong += not is_right
        for channel in self._channels:
            channel.close()


def _open(address: str, certificate: bytes | None) -> grpc.Channel:
    if certificate is None:
        return grpc.insecure_channel(address, _OPTIONS)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), _OPTIONS)
