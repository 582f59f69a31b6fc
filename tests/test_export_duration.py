"""The cost benchmark: it measures the process that it started, and says which limit is missed."""

import json
import subprocess
import sys

import pytest

from benchmarks.export_duration import CASES, Cost

MIB = 2**20


@pytest.mark.parametrize("size", [100, 300])
def test_memory_and_processor_time_are_those_of_the_child(size):
    # Measured from a small process, as the benchmark is: this one's memory would count as the child's.
    code = f"held = b'x' * ({size} * {MIB}); sum(range(2_000_000)); raise SystemExit(3)"
    measuring = (
        "import json, sys; from dataclasses import asdict; from benchmarks.export_duration import measure; "
        f"print(json.dumps(asdict(measure([sys.executable, '-IS', '-c', {code!r}]))))"
    )
    printed = subprocess.run([sys.executable, "-c", measuring], check=True, capture_output=True, text=True)
    cost = Cost(**json.loads(printed.stdout))
    assert cost.exit_status == 3
    assert size < cost.peak_mib < size + 60
    assert cost.cpu_s > 0


def test_missed_limits_are_named():
    (case,) = (case for case in CASES if case.name == "alexnet")
    assert Cost(0, wall_s=100, cpu_s=15.0, peak_mib=2000).verdict(case) == "met"
    over = Cost(0, wall_s=1, cpu_s=15.1, peak_mib=2400).verdict(case)
    assert over == "MISSED: at most 15 s of the CPUs; MISSED: at most 2384.19 MiB"
