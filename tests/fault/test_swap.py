"""Versions replaced under constant load: no call fails, and every answer is that of the version it names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.demo.children import ending_with_us
from tests.fault.test_damaged_versions import change_a_byte, flip_exponent_bit, make_weight_nan, swap_golden
from tests.support.artifacts import TinyNetwork
from tests.support.repository_changes import eventually, sha256_of, states
from tests.support.scrape import scrape
from tests.support.server_process import SOURCE, ServerProcess
from tests.support.swap_client import CLASSIFYING_WORKERS, WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable

DAMAGES: tuple[Callable[[Path], None], ...] = (change_a_byte, flip_exponent_bit, make_weight_nan, swap_golden)
# A bad one comes after so many good ones.
GOOD_BETWEEN = 4


class Updater:
    """Publishes network after network as the model ``tiny``, by turns as a new version and in place."""

    def __init__(self, server: ServerProcess, folder: Path, staging: Path, stored: list[Path]) -> None:
        self.server, self.folder, self.staging, self.stored = server, folder, staging, stored
        self.newest = 1
        self.served = [("1", sha256_of(folder / "1"))]

    def wait_for_answers(self) -> None:
        """Wait until whatever serves now has answered: more calls than were under way have come back OK."""
        before = self._answered()
        least = 2 * (WORKERS + CLASSIFYING_WORKERS)
        eventually(lambda: self._answered() >= before + least, "the load is answered")

    def _answered(self) -> float:
        return scrape(self.server).total("foldserve_requests_total", model="tiny", code="OK")

    def update(self, index: int) -> None:
        version = self.stored[index]
        if is_bad(index):
            DAMAGES[index // (GOOD_BETWEEN + 1) % len(DAMAGES)](version)
            self._publish(version)
            eventually(lambda: self._state(self.newest) == "UNAVAILABLE", "the bad version is refused")
            shutil.rmtree(self.folder / str(self.newest))
            return
        if index % 2:
            old, target = self.served[-1][0], str(self.newest + 1)
            self._publish(version)
            eventually(lambda: self._state(self.newest) == "READY", "the new version is served")
            shutil.rmtree(self.folder / old)
        else:
            target = self.served[-1][0]
            for name in ("model.onnx", "golden.npz", "manifest.json"):
                shutil.copy(version / name, self.folder / target)
            digest = sha256_of(version)
            eventually(lambda: self._digest(target) == digest, "the changed version is served")
        self.served.append((target, sha256_of(self.folder / target)))
        self.wait_for_answers()

    def _publish(self, version: Path) -> None:
        self.newest += 1
        staged = self.folder / f".{self.newest}"
        shutil.copytree(version, staged)
        staged.rename(self.folder / str(self.newest))

    def _state(self, version: int) -> str:
        return states(self.server, "tiny").get(str(version), ("", ""))[0]

    def _digest(self, version: str) -> str:
        from foldserve.serving.pb import open_inference_pb2 as pb

        request = pb.ModelMetadataRequest(name="tiny", version=version)
        return str(self.server.stub.ModelMetadata(request).properties["model_sha256"])


def is_bad(index: int) -> bool:
    return index % (GOOD_BETWEEN + 1) == GOOD_BETWEEN


def resident_kib(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def swap_under_load(tmp_path: Path, transport: str, count: int) -> tuple[list[int], list[str]]:
    """Do ``count`` updates under load; return resident memory after each, and the client's complaints."""
    first = TinyNetwork(seed=1000)
    folder, image = tmp_path / "models" / "tiny", first.random_images(1)
    first.publish(folder)
    (folder / "model.toml").write_text("version_policy = { latest = 1 }\n")
    # Other seeds than `swap_golden` has, whose pairs would prove its own network.
    networks = [TinyNetwork(seed=2000 + index) for index in range(count)]
    stored = [network.publish(tmp_path / "staging" / str(index)) for index, network in enumerate(networks)]
    logits = {sha256_of(folder / "1"): first.logits(image)[0]}
    logits |= {
        sha256_of(path): network.logits(image)[0] for path, network in zip(stored, networks, strict=True)
    }
    np.savez(tmp_path / "expected.npz", image=image, **logits)
    order, stop = tmp_path / "order.json", tmp_path / "stop"
    memory = []
    flags = ("--transport", transport, "--poll-s", "0.1")
    with ServerProcess(tmp_path / "models", tmp_path / "server", *flags) as server:
        command = [sys.executable, "-m", "tests.support.swap_client", server.address]
        command += [str(tmp_path / "expected.npz"), str(order), str(stop)]
        environment = os.environ | {"PYTHONPATH": str(SOURCE)}
        client = subprocess.Popen(
            ending_with_us(command), stdout=subprocess.PIPE, text=True, cwd=SOURCE, env=environment
        )
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "started\n"
            updater = Updater(server, folder, tmp_path / "staging", stored)
            updater.wait_for_answers()
            for index in range(count):
                updater.update(index)
                memory.append(resident_kib(server))
        finally:
            order.write_text(json.dumps(updater.served))
            stop.touch()
        report = json.loads(client.communicate(timeout=90)[0])
        faults = report["faults"]
        if min(report["answers"]) == 0:
            faults.append(f"a caller without an answer: {report['answers']}")
        if report["hashes"] < len({digest for _, digest in updater.served}):
            faults.append(f"answers of {report['hashes']} files only, {len(updater.served)} were served")
        eventually(
            lambda: list(states(server, "tiny")) == [updater.served[-1][0]], "the removed versions are gone"
        )
        memory.append(resident_kib(server))
        print(f"{transport}: {sum(report['answers'])} answers, resident KiB {memory[0]} -> {memory[-1]}")
    return memory, faults


def test_replacing_versions_fails_no_call(tmp_path: Path, transport: str) -> None:
    """Five updates, one of them bad: a version that fails its proof."""
    _, faults = swap_under_load(tmp_path, transport, GOOD_BETWEEN + 1)
    assert faults == []


@pytest.mark.slow
def test_a_hundred_swaps_lose_nothing_and_leave_nothing_behind(tmp_path: Path, transport: str) -> None:
    """Twenty of them bad. Memory is compared from when the first few have settled."""
    memory, faults = swap_under_load(tmp_path, transport, 100)
    assert faults == []
    assert memory[-1] < 1.1 * memory[4], memory
