"""Callers who hang up in the very moment in which they are answered."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc

from serving.pb import open_inference_pb2 as pb
from tests.serving.artifacts import TinyNetwork
from tests.serving.server_process import ServerProcess, infer_request

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = TinyNetwork()
CALLER_COUNT = 30
CALLING_S = 6.0


def call_impatiently(server: ServerProcess, seed: int) -> int:
    """Make calls of every kind with deadlines about as long as answers take; return how many were made."""
    chance = random.Random(seed)
    requests = [infer_request(NETWORK.random_images(1), name) for name in ("tiny", "nobody")]
    give_up_s = time.monotonic() + CALLING_S
    call_count = 0
    while time.monotonic() < give_up_s:
        call_count += 1
        limit_s = chance.random() * 0.03
        try:
            match chance.randrange(3):
                case 0:
                    server.stub.ModelInfer(chance.choice(requests), timeout=limit_s)
                case 1:
                    name = chance.choice(["tiny", "nobody"])
                    server.stub.ModelMetadata(pb.ModelMetadataRequest(name=name), timeout=limit_s)
                case _:
                    some = chance.choices(requests, k=3)
                    list(server.stub.ModelStreamInfer(iter(some), timeout=limit_s))
        except grpc.RpcError:
            pass
    return call_count


def test_hang_ups_leave_nothing_in_the_log(tmp_path: Path, transport: str) -> None:
    NETWORK.publish(tmp_path / "models" / "tiny")
    with ServerProcess(tmp_path / "models", tmp_path / "server", "--transport", transport) as server:
        with ThreadPoolExecutor(CALLER_COUNT) as callers:
            counts = list(callers.map(lambda seed: call_impatiently(server, seed), range(CALLER_COUNT)))
        assert all(counts)
        server.infer(NETWORK.random_images(1))
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log
