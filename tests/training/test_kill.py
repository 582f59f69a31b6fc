"""A training process that is killed again and again loses only the work since its last checkpoint."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from foldserve.demo.children import ending_with_us
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.models import create_model
from tests.support.image_folders import write_classes

ROOT = Path(__file__).parents[2]
# 192 images, 40 of them the test's and 15 validation's: 137, by 8; each class has 34 or 35 of them.
EPOCHS, STEPS_PER_EPOCH = 4, {"plain": 17, "from weights, balanced": 18}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pictures", per_class=48)


# With all that has state or draws at random, once without and once with what begins from other weights.
PLAIN = ["--ema-decay=0.9", "--dropout=0.2"]
BALANCED = [
    "--ema-decay=0.9",
    "--sampler=balanced",
    "--class-weights=balanced",
    "--select=macro-f1",
    "--patience=4",
    "--mixup=0.2",
]


def start(folder: Path, run_dir: Path, more: list[str]) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "foldserve",
        "train",
        "--dataset",
        str(folder),
        "--run-dir",
        str(run_dir),
    ]
    settings = [
        "--arch=lenet",
        "--deterministic",
        "--device=cpu",
        "--threads=1",
        "--batch-size=8",
        f"--epochs={EPOCHS}",
    ]
    state = [*more, "--lr=0.02", "--checkpoint-every=0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder.parent / "cache"), "COLUMNS": "500"}
    return subprocess.Popen(
        ending_with_us([*command, *settings, *state]),
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def saved_step(run_dir: Path) -> int:
    checkpoint = load_checkpoint(run_dir / "last.pt")
    assert checkpoint.trainer is not None
    return int(checkpoint.trainer["step"])


def kill_at_some_step(
    process: subprocess.Popen[str], run_dir: Path, after_step: int, rng: random.Random
) -> int:
    """Kill the process after a checkpoint past ``after_step``; return the last checkpoint's step."""
    deadline = time.monotonic() + 300  # against a hang; a busy machine is slow
    while not (run_dir / "last.pt").exists() or saved_step(run_dir) <= after_step:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return saved_step(run_dir)


@pytest.mark.parametrize(
    "settings", ["plain", pytest.param("from weights, balanced", marks=pytest.mark.slow)]
)
def test_a_run_killed_at_random_steps_resumes_and_ends_bit_identical(
    folder: Path, tmp_path: Path, settings: str
):
    more = PLAIN
    if settings != "plain":
        first = tmp_path / "first.pt"
        shape = {"in_channels": 1, "class_count": 4, "height": 28, "width": 28}
        torch.save(create_model("lenet", **shape).state_dict(), first)
        more = [*BALANCED, f"--init={first}", "--freeze=features.0", "--backbone-lr-scale=0.5"]
    rng = random.Random(int.from_bytes(os.urandom(4)))  # a failure shows the steps
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(folder, whole, more))
    total = EPOCHS * STEPS_PER_EPOCH[settings]
    steps = [0]
    for share in (0.1, 0.3):  # early: on a busy machine the kill may come much later than it was meant to
        process = start(folder, broken, more)
        # Past the last kill too, which may have come later than this one was meant to.
        steps.append(kill_at_some_step(process, broken, max(round(share * total), steps[-1]), rng))
        if len(steps) > 2:
            assert steps[-1] > steps[-2], f"it silently started over: {steps}"
    output = finish(start(folder, broken, more))
    resumed = re.search(r"resuming .* at step (\d+) of (\d+)", output)
    assert resumed, f"it did not say that it goes on; killed at {steps}: {output}"
    assert [int(number) for number in resumed.groups()] == [steps[-1], total]
    for name in ("best.pt", "last.pt"):
        one, two = load_checkpoint(whole / name), load_checkpoint(broken / name)
        for mine, other in ((one.weights, two.weights), (one.ema_weights or {}, two.ema_weights or {})):
            assert mine.keys() == other.keys()
            assert len(mine) > 0
            assert all(torch.equal(mine[key], other[key]) for key in mine), f"killed at {steps}"
    epochs = [json.loads(line)["epoch"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, EPOCHS + 1))
    assert not list(broken.glob("*.part")), "what was being written is left"
