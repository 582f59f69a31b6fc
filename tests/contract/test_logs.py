"""What the server writes: JSON for machines, lines for people, a line a request at debug only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.artifacts import TinyNetwork
from tests.serving.server_process import PROVIDER, ServerProcess, status_of

if TYPE_CHECKING:
    from pathlib import Path

FORGED = "seven\n2026-01-01 00:00:00 INFO serving.server: drained"


def lines_of(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_each_request_is_one_json_line_at_debug(tmp_path: Path, transport: str, repository: Path) -> None:
    image = TinyNetwork(seed=2).random_images(3)
    flags = ("--transport", transport, "--log-format", "json", "--log-level", "debug")
    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        server.infer(image, id=FORGED)
        status_of(lambda: server.infer(image, "nobody", id="eight"))
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        lines = lines_of(server)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    messages = [line["message"] for line in lines if line["logger"] == "foldserve"]
    assert messages[0].startswith(f"listening on {server.address}")
    assert messages[1].startswith(f"serving on {server.address} ({PROVIDER}")
    answered, refused = (line for line in lines if "request_id" in line)
    assert answered["peer"].startswith("ipv4:127.0.0.1:") or transport == "grpcio"
    expected = {"level": "debug", "model": "tiny", "version": "2", "method": "ModelInfer", "code": "OK"}
    assert answered.items() >= (expected | {"request_id": FORGED, "rows": 3}).items()
    assert 0 < answered["queue_s"] + answered["compute_s"] < answered["total_s"]
    assert refused.items() >= {"model": "nobody", "request_id": "eight", "code": "NOT_FOUND"}.items()


def test_nothing_is_logged_of_requests_at_info(server: ServerProcess, network: TinyNetwork) -> None:
    server.infer(network.random_images(1), id="an-id-of-its-own")
    assert "an-id-of-its-own" not in server.log


def test_a_line_for_people_cannot_be_forged(tmp_path: Path, repository: Path) -> None:
    with ServerProcess(repository, tmp_path / "server", "--log-level", "debug") as server:
        server.infer(TinyNetwork(seed=2).random_images(1), id=FORGED)
        assert f"foldserve: serving on {server.address} ({PROVIDER}, " in server.log
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        lines = server.log.splitlines()
    assert [line for line in lines if "seven" in line and "ModelInfer 'tiny/2' OK id 'seven" in line]
    assert not [line for line in lines if line.startswith("2026-01-01 00:00:00 INFO")]
