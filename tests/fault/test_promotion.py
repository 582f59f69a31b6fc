"""`foldserve models promote` and `rollback` under load: no call fails, no answer is another model's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve import cli
from foldserve.artifact.promotion import PROMOTED_FILE
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.pb import open_inference_pb2_grpc
from tests.fault.test_damaged_versions import swap_golden
from tests.support.artifacts import TinyNetwork
from tests.support.repository_changes import eventually, states
from tests.support.server_process import ServerProcess, infer_request, outputs_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

CALLERS = 4
NETWORKS = {str(seed): TinyNetwork(seed) for seed in (1, 2, 3)}


class Caller(threading.Thread):
    """Asks without naming a version, one question after the other; notes each change of who answered."""

    def __init__(self, address: str, stop: threading.Event, images: NDArray[np.uint8]) -> None:
        super().__init__()
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)])
        self._stop_asking, self._images = stop, images
        self.answered: list[str] = []  # versions, each time another one answers
        self.count = 0
        self.faults: list[str] = []

    def run(self) -> None:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        while not self._stop_asking.is_set():
            try:
                answer = stub.ModelInfer(infer_request(self._images), timeout=60)
            except grpc.RpcError as error:
                self.faults.append(f"{error.code()}: {error.details()}")
                continue
            self.count += 1
            version = answer.model_version
            expected = NETWORKS[version].logits(self._images)
            if np.abs(outputs_of(answer)["logits"] - expected).max() > 1e-5:
                self.faults.append(f"version {version} answered with another network's logits")
            if self.answered[-1:] != [version]:
                self.answered.append(version)


def default_of(server: ServerProcess) -> str:
    version: str = server.infer(NETWORKS["1"].random_images(1)).model_version
    return version


def models(folder: Path, *words: str) -> None:
    assert cli.main(["models", *words, "--repository", str(folder)]) == 0


def all_asked_again(callers: list[Caller]) -> Callable[[], bool]:
    """Return a check that each caller has begun and ended a call since now."""
    done = [caller.count for caller in callers]
    return lambda: all(one.count > was + 1 for one, was in zip(callers, done, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for network in NETWORKS.values():
        network.publish(tmp_path / "models" / "tiny")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("transport", "policy"),
    [
        pytest.param("native", "latest", id="native, one version served"),
        *[
            pytest.param(*each, marks=pytest.mark.slow, id=f"{each[0]}, {each[1]}")
            for each in (("native", "all"), ("grpcio", "latest"), ("grpcio", "all"))
        ],
    ],
)
def test_promote_rollback_and_delete_fail_no_call(
    folder: Path, tmp_path: Path, transport: str, policy: str
) -> None:
    """Under `latest = 1` each promotion loads a version and lets another go."""
    if policy == "latest":
        (folder / "tiny" / "model.toml").write_text("version_policy = { latest = 1 }\n")
    images, stop = NETWORKS["1"].random_images(2), threading.Event()
    flags = ("--transport", transport, "--poll-s", "0.1")
    with ServerProcess(folder, tmp_path / "server", *flags) as server:
        callers = [Caller(server.address, stop, images) for _ in range(CALLERS)]
        try:
            for caller in callers:
                caller.start()
            eventually(all_asked_again(callers), "all callers are answered by version 3")
            steps = (
                (("promote", "tiny", "1"), "1"),
                (("promote", "tiny", "2"), "2"),
                (("rollback", "tiny"), "1"),
                (("delete", "tiny", "3"), "1"),
                (("rollback", "tiny"), "2"),
            )
            for words, expected in steps:
                models(folder, *words)
                eventually(lambda expected=expected: default_of(server) == expected, f"after {words}")
                eventually(all_asked_again(callers), "all callers are answered")
        finally:
            stop.set()
            for caller in callers:
                if caller.is_alive():
                    caller.join()
        assert [caller.faults for caller in callers] == [[]] * CALLERS
        # Each caller saw the versions in this order, and no other between them.
        assert [caller.answered for caller in callers] == [["3", "1", "2", "1", "2"]] * CALLERS
        eventually(lambda: "3" not in states(server, "tiny"), "the deleted version is gone")


def test_promotion_outlives_a_restart_and_a_refused_one_takes_nothing_away(
    folder: Path, tmp_path: Path
) -> None:
    models(folder, "promote", "tiny", "1")
    with ServerProcess(folder, tmp_path / "server", "--poll-s", "0.1") as server:
        assert default_of(server) == "1"
        described = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        expected = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny", version="1"))
        assert described.properties == expected.properties
        staged = TinyNetwork(4).publish(tmp_path / "staging" / "tiny")
        swap_golden(staged)  # whole, and refused at its proof
        staged.rename(folder / "tiny" / "4")
        models(folder, "promote", "tiny", "4")
        said = "tiny (promoted): version 4 is promoted, but 1 answers"
        eventually(lambda: said in server.log, "the refused promotion is said")
        assert default_of(server) == "1"
        (folder / "tiny" / PROMOTED_FILE).write_text("{")
        eventually(lambda: "promoted.json is malformed" in server.log, "the malformed file is said")
        assert default_of(server) == "1"
