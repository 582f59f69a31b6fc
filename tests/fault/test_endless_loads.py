"""A version whose loading does not end, or asks for too much, is refused, and holds up nothing else."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.endless import EndlessNetwork, HeavyNetwork, HugeNetwork, publish_bomb, publish_unproven
from tests.support.repository_changes import eventually, serves, states
from tests.support.server_process import ServerProcess, outputs_of, run_cli, status_of

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = TinyNetwork()
IMAGES = NETWORK.random_images(2)
TOO_LONG = "loading took longer than the limit of 5 s"


def publish_bad_ones(folder: Path) -> dict[str, str]:
    """Publish one of each kind; return the expected reason of each, by model name."""
    publish_unproven(EndlessNetwork(of_input=False), folder / "a-constant-loop")
    publish_unproven(EndlessNetwork(of_input=True), folder / "a-loop")
    publish_unproven(HugeNetwork(2**32), folder / "b-constant-of-4-gib")
    publish_bomb(folder / "c-bomb", count=20_000_000)
    publish_bomb(folder / "d-liar", count=90_000_000, count_there=1000)
    sparse = TinyNetwork().publish(folder / "e-sparse-file")
    os.truncate(sparse / "model.onnx", 2**32)
    os.truncate(NETWORK.publish(folder / "f-sparse-manifest") / "manifest.json", 2**32)
    return {
        "a-constant-loop": TOO_LONG,
        "a-loop": TOO_LONG,
        "b-constant-of-4-gib": "is smaller than requested bytes of 4294967296",
        "c-bomb": "the limit is 1073741824",
        "d-liar": "images declares 5760000000 bytes but has 64000",
        "e-sparse-file": "model.onnx has 4294967296 bytes; it may have 2147483648 at most",
        "f-sparse-manifest": "manifest.json has 4294967296 bytes; it may have 4194304 at most",
    }


def answers(server: ServerProcess, model: str = "zebra", network: TinyNetwork = NETWORK) -> bool:
    given = outputs_of(server.infer(IMAGES, model))["logits"]
    return bool(np.abs(given - network.logits(IMAGES)).max() < 1e-5)


def test_models_that_sort_after_endless_loads_are_served(tmp_path: Path, transport: str) -> None:
    expected = publish_bad_ones(tmp_path / "models")
    NETWORK.publish(tmp_path / "models" / "zebra")
    flags = ("--transport", transport, "--load-timeout-s", "5", "--max-model-memory-mib", "1024")
    with ServerProcess(tmp_path / "models", tmp_path / "server", *flags) as server:
        assert server.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert answers(server)
        for name, reason in expected.items():
            code, text = status_of(lambda name=name: server.infer(IMAGES, name))
            assert code == grpc.StatusCode.UNAVAILABLE
            assert reason in text
            assert states(server, name)["1"] == ("UNAVAILABLE", text.partition("does not serve: ")[2])


def test_hung_load_leaves_the_old_version_serving_and_delays_no_other(tmp_path: Path, transport: str) -> None:
    """It never ends within this test: other models are added and replaced meanwhile, and it drains."""
    models = tmp_path / "models"
    for name in ("aardvark", "zebra"):
        NETWORK.publish(models / name)
    flags = ("--transport", transport, "--poll-s", "0.1", "--load-timeout-s", "86400")
    with ServerProcess(models, tmp_path / "server", *flags) as server:
        publish_unproven(EndlessNetwork(of_input=True), models / "aardvark")
        eventually(lambda: "2" in states(server, "aardvark"), "the endless version is being loaded")
        newer = TinyNetwork(seed=2)
        newer.publish(models / "zebra")
        eventually(lambda: serves(server, "zebra", "2"), "another model's new version serves")
        newer.publish(models / "another")
        eventually(lambda: "another" in server.log and serves(server, "another", "1"), "and a new model")
        assert states(server, "aardvark")["2"][0] == "LOADING"
        assert answers(server, "aardvark")
        assert answers(server, "zebra", newer)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0, "the grace period is as long"


def test_load_that_cannot_be_stopped_is_abandoned(tmp_path: Path, transport: str) -> None:
    models = tmp_path / "models"
    for name in ("hung", "zebra"):
        NETWORK.publish(models / name)
    flags = ("--transport", transport, "--load-timeout-s", "3")
    module = "tests.support.hung_disk_server"
    with ServerProcess(models, tmp_path / "server", *flags, module=module) as server:
        assert answers(server)
        assert "loading took longer" in states(server, "hung")["1"][1]
        assert "hung/1 cannot be stopped" in server.log
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        assert "1 loads cannot be stopped" in server.log


def test_server_ends_normally_during_a_long_operator(tmp_path: Path, transport: str) -> None:
    """ONNX Runtime aborts a process whose libraries are unloaded beneath a run."""
    models = tmp_path / "models"
    NETWORK.publish(models / "zebra")
    flags = ("--transport", transport, "--poll-s", "0.1", "--load-timeout-s", "86400")
    with ServerProcess(models, tmp_path / "server", *flags) as server:
        publish_unproven(HeavyNetwork(), models / "heavy")
        eventually(lambda: states(server, "heavy"), "the heavy model is found")
        time.sleep(1)  # in the middle of it, most likely
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0


@pytest.mark.parametrize("of_input", [True, False])
def test_verify_names_the_version_that_never_ends(tmp_path: Path, *, of_input: bool) -> None:
    publish_unproven(EndlessNetwork(of_input=of_input), tmp_path / "endless")
    NETWORK.publish(tmp_path / "zebra")
    flags = ("--repository", str(tmp_path), "--device", "cpu", "--load-timeout-s", "3")
    ended = run_cli("models", "verify", *flags)
    assert ended.returncode == 1
    rows = {tuple(line.split()[:3]) for line in ended.stdout.splitlines()}
    assert {("endless", "1", "FAILED"), ("zebra", "1", "ok")} <= rows
    assert "loading took longer" in ended.stdout
