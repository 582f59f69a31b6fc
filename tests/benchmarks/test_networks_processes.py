"""Networks of `make bench-networks` run in processes of their own: a crash is a row like any other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from foldserve.demo.children import ending_with_us
from tests.support.sources import ROOT

# In a process without threads, as the benchmark has it.
SCRIPT = """
import json, os, sys, time
from benchmarks.networks.processes import Limits, run_jobs

def right(folder, tell):
    (folder / "scratch").write_text("x")
    tell({"step": "export"})
    tell({"outcome": "right"})
    tell({"step": "pytorch"})
    tell({"pytorch": {"outcome": "wrong"}})

def hangs(folder, tell):
    tell({"step": "export"})
    time.sleep(60)

def spins(folder, tell):
    tell({"step": "export"})
    while True:
        pass

def hangs_later(folder, tell):
    tell({"outcome": "right"})
    tell({"step": "pytorch"})
    time.sleep(60)

def grows(folder, tell):
    tell({"step": "export"})
    kept = b"x" * (300 << 20)
    time.sleep(60)

def dies(folder, tell):
    tell({"step": "export"})
    os.kill(os.getpid(), 11)

def raises(folder, tell):
    raise RuntimeError("no such network")

def job(name):
    return {"network": name}, globals()[name]

names = sys.argv[5:]
cpu, mib, clock, at_once = map(int, sys.argv[1:5])
for row in run_jobs(map(job, names), Limits(cpu, mib, clock), at_once):
    print(json.dumps(row), flush=True)
"""


def run(
    *names: str, cpu: int = 30, mib: int = 4000, clock: int = 30, at_once: int = 1
) -> dict[str, dict[str, object]]:
    command = [sys.executable, "-c", SCRIPT, *map(str, (cpu, mib, clock, at_once)), *names]
    done = subprocess.run(ending_with_us(command), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row.pop("network"): row for row in rows}


def test_what_an_attempt_tells_becomes_its_row() -> None:
    assert run("right") == {"right": {"outcome": "right", "pytorch": {"outcome": "wrong"}}}


def test_crashes_are_rows_and_the_next_one_runs() -> None:
    rows = run("dies", "raises", "right", at_once=2)
    assert (rows["dies"]["outcome"], rows["dies"]["reason"]) == ("crashed", "ended by SIGSEGV")
    assert rows["raises"]["outcome"] == "not built"
    assert rows["raises"]["reason"] == "RuntimeError: no such network"
    assert rows["right"]["outcome"] == "right"


@pytest.mark.parametrize(
    ("name", "bound", "reason"),
    [
        pytest.param("spins", {"cpu": 1}, "took more than 1 s of the processor", id="processor"),
        pytest.param("hangs", {"clock": 1}, "timed out after 1 s", id="clock"),
        pytest.param("grows", {"mib": 200}, "took more than 200 MiB", id="memory"),
    ],
)
def test_limits_stop_an_attempt(name: str, bound: dict[str, int], reason: str) -> None:
    found = run(name, **bound)[name]
    assert (found["outcome"], found["reason"]) == ("stopped", reason)


def test_facts_from_before_a_limit_are_kept() -> None:
    found = run("hangs_later", clock=5)["hangs_later"]  # a busy machine may take a second for the first facts
    assert found["outcome"] == "right"
    assert found["pytorch"] == {"outcome": "stopped", "reason": "timed out after 5 s"}
