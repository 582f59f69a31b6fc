"""The server killed under real load: every call has an outcome, and the next server verifies its models.

One process does all the work, with a thread an instance: there is no worker to lose but the server itself.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import numpy as np

from tests.fault.test_drain import outcomes_of, start_load
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, outputs_of

if TYPE_CHECKING:
    from pathlib import Path


def test_killed_server_leaves_no_call_waiting_and_a_new_one_starts(tmp_path: Path, transport: str) -> None:
    """Calls that were under way are told UNAVAILABLE, none of those answered is wrong, none hangs."""
    network = TinyNetwork()
    network.publish(tmp_path / "models" / "tiny")
    with ServerProcess(tmp_path / "models", tmp_path / "first", "--transport", transport) as server:
        client = start_load(server, connections=20, pause_ms=50)
        server.process.kill()
        assert server.process.wait(timeout=20) == -signal.SIGKILL
        outcomes = outcomes_of(client)
    broken_off = {told for told in outcomes if told.startswith("UNAVAILABLE: ")}
    assert set(outcomes) - broken_off == {"right", "connection refused"}, outcomes
    assert outcomes["right"] >= 20, "each connection had an answer before"
    assert outcomes["connection refused"] == 20
    assert sum(outcomes[told] for told in broken_off) <= 20, "no call but those under way"
    images = network.random_images(3)
    with ServerProcess(tmp_path / "models", tmp_path / "second", "--transport", transport) as server:
        assert "golden pairs reproduced" in server.log
        assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5
