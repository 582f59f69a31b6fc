"""Links that can be cut, and Envoy behind them; `make check-network` does it 50 times."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.checks.envoy import CONFIG, COUNTERS, count_healthy, find_envoy, read_counters
from deploy.checks.errors import CheckError
from deploy.checks.namespaces import CUTS, isolated
from deploy.checks.network import LEAST_CUT_S, MOST_CUT_S, REPLICAS, draw, without_retries
from tests.support.sources import ROOT


def run_isolated(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a network of its own; skip the test where that is not possible."""
    try:
        words = isolated([sys.executable, *command])
    except CheckError as error:
        pytest.skip(str(error))
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


def own_network() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def test_each_way_to_cut_a_link_stops_everything_and_can_be_mended() -> None:
    before = own_network()
    done = run_isolated("-m", "tests.support.cut_network")
    assert done.returncode == 0, done.stderr
    reached_before, cut, other, after = True, False, True, True
    assert json.loads(done.stdout) == [[way, reached_before, cut, other, after] for way in CUTS]
    assert own_network() == before


def test_what_is_missing_for_a_network_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CheckError, match=r"needs unshare, .*ip on the path; .*iproute2"):
        isolated(["true"])


def test_a_machine_that_allows_no_namespaces_is_told_from_one_that_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    for tool in ("ip", "nsenter", "setpriv", "mount"):
        (tmp_path / tool).symlink_to(refusing)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CheckError, match="Operation not permitted") as caught:
        isolated(["true"])
    assert "\n" not in str(caught.value)


def test_the_trials_cut_in_every_way_and_pause_another_server() -> None:
    generator = random.Random(0)
    breaks = [draw(generator, number) for number in range(50)]
    assert {broken.way for broken in breaks} == set(CUTS)
    assert {broken.cut for broken in breaks} == {broken.paused for broken in breaks} == set(range(REPLICAS))
    assert all(broken.cut != broken.paused for broken in breaks)
    assert all(LEAST_CUT_S <= broken.seconds <= MOST_CUT_S for broken in breaks)


def test_the_weakened_envoy_tries_nothing_again() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    without_retries(config)
    assert "retry" not in yaml.safe_dump(config["static_resources"]["listeners"])


def test_counters_are_read_and_missing_ones_are_none() -> None:
    found = read_counters("cluster.servers.upstream_rq_retry: 7\ncluster.servers.upstream_cx_total: 9\n")
    assert found == {**dict.fromkeys(COUNTERS, 0), "upstream_rq_retry": 7}
    flags = ("healthy", "/failed_active_hc", "healthy")
    assert count_healthy("\n".join(f"servers::10.0.0.1:8001::health_flags::{flag}" for flag in flags)) == 2


@pytest.mark.slow
@pytest.mark.interop
def test_no_call_is_lost_while_a_link_is_cut_and_a_server_hangs() -> None:
    try:
        find_envoy()
    except CheckError as error:
        pytest.skip(str(error))
    done = run_isolated("-m", "deploy.checks.network", "--trials", "3", "--inside")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("without retries, Envoy lost ") for line in lines)
    assert "0 wrong, 0 lost" in next(line for line in lines if line.startswith("trial 3 "))
