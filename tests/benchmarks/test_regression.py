"""`make bench-regression`: how it judges, its stored baseline, and that it fails where it should."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.regression.baseline import BASELINE, read_baseline
from benchmarks.regression.judge import Estimate, estimate, judge
from benchmarks.serving.errors import BenchError
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_CASES = {"batch-of-32", "batch-of-1", "32-images", "native-code", "grpcio-code"}


def test_eight_values_are_the_least_that_bound_a_median() -> None:
    few = estimate([1.0] * 7)
    assert judge(few, 1e9) == "undecided"
    assert estimate(range(1, 9)) == Estimate(4.5, 1, 8, 8)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """With skewed noise, whose mean is elsewhere."""
    draw = random.Random(0)
    held = 0
    for _ in range(1000):
        found = estimate([draw.expovariate(1) for _ in range(20)])
        held += found.least <= 0.6931 <= found.most
    assert 980 <= held <= 1000


@pytest.mark.parametrize(("truth", "verdict"), [(1.0, "ok"), (1.3, "slower"), (1.1, "undecided")])
def test_noise_of_a_tenth_leaves_the_verdict_right(truth: float, verdict: str) -> None:
    draw = random.Random(1)
    ratios = [truth * draw.lognormvariate(0, 0.1) for _ in range(60)]
    assert judge(estimate(ratios), 1.1) == verdict


def test_the_stored_baseline_has_every_default_case() -> None:
    stored = read_baseline(BASELINE)
    assert set(stored.cases) >= DEFAULT_CASES
    for case in stored.cases.values():
        assert 1 < case.least <= case.ratio <= case.most < 10
        assert case.most - case.least < 0.1 * case.ratio


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "No such file"), ("{", "Invalid JSON"), ('{"measured_on": {}, "cases": {"x": 1}}', "cases.x")],
)
def test_a_file_that_is_no_baseline_is_one_line(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BenchError, match=complaint) as caught:
        read_baseline(path)
    assert "\n" not in str(caught.value)
    assert "--update" in str(caught.value)


def compare(*flags: str, case: str = "batch-of-32") -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "benchmarks.regression"]
    command = [*program, "--cases", case, "--cpu-s", "0.05", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["batch-of-32", "native-code", "grpcio-code"])
def test_a_planted_slowdown_fails_and_the_bare_ratio_passes(tmp_path: Path, case: str) -> None:
    """The limits are far away on both sides, so that no machine is too busy."""
    baseline = json.loads(BASELINE.read_text())
    baseline["cases"][case]["ratio"] *= 1.6
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(baseline))
    sound = compare("--baseline", str(path), "--rounds", "8", case=case)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    slowed = compare("--baseline", str(path), "--rounds", "8", "--planted-us", "200", case=case)
    assert slowed.returncode == 1, slowed.stdout + slowed.stderr
    assert slowed.stdout.splitlines()[-1].startswith("slower")


def test_a_slowdown_is_never_stored(tmp_path: Path) -> None:
    done = compare("--update", "--planted-us", "5", "--baseline", str(tmp_path / "new.json"))
    assert done.returncode == 3
    assert "would store a slowdown" in done.stderr
    assert not (tmp_path / "new.json").exists()
