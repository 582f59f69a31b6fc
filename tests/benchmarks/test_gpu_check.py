"""`make gpu-check`: what it runs, and that it goes on past a step that fails."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu.check import Step, run, steps
from benchmarks.gpu.pictures import write_pictures
from benchmarks.gpu.replicas import describe
from foldserve.cli import parse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("has_gpu", [True, False])
def test_each_command_of_foldserve_is_one_that_it_takes(tmp_path: Path, has_gpu: bool) -> None:
    planned = steps(tmp_path, has_gpu=has_gpu, dataset=str(tmp_path))
    ours = [step.command[3:] for step in planned if step.command[1:3] == ("-m", "foldserve")]
    assert [words[0] for words in ours] == ["train", "export", "export", "models"]
    for words in ours:
        config = parse(list(words), {})
        # Export has no such flag: it proves on every device that there is.
        assert getattr(config, "device", "any") in ("any", "cuda" if has_gpu else "cpu")


def test_without_a_gpu_its_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    rehearsed, real = (steps(tmp_path, has_gpu=has_gpu, dataset="x") for has_gpu in (False, True))
    assert [step.name for step in rehearsed if step.skipped] == ["pytest -m gpu"]
    assert not any(step.skipped for step in real)
    assert run(rehearsed[0], tmp_path / "1.txt", 100)[0].startswith("skipped: no GPU")


def test_how_a_step_ended_is_told(tmp_path: Path) -> None:
    def ended(code: str, limit_s: float = 60, left_s: float = 60) -> str:
        return run(Step("x", (sys.executable, "-c", code), limit_s), tmp_path / "out", left_s)[0]

    assert ended("print('fine')") == "ok"
    assert (tmp_path / "out").read_text() == "fine\n"
    assert ended("raise SystemExit(3)") == "FAILED with status 3"
    assert ended("import time; time.sleep(60)", limit_s=0.5) == "FAILED: out of time"
    assert ended("", left_s=0) == "skipped: the time is over"


def test_replicas_are_compared_within_a_round() -> None:
    """A machine that slows down from round to round changes the rates and not the ratio."""
    rounds = [((3000.0, 50.0), (2000.0, 60.0)), ((300.0, 70.0), (200.0, 80.0)), ((33.0, 90.0), (20.0, 99.0))]
    told = describe(rounds)
    assert told == (
        "foldserve 300 requests/s (70 us of CPU each), mosec 200 requests/s (80 us of CPU each), "
        "ratio 1.50 [1.50, 1.65]"
    )


def test_pictures_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (write_pictures(tmp_path / name, per_class=3) for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    assert len(files) == 12
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)
