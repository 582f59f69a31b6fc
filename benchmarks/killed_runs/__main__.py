"""`python -m benchmarks.killed_runs`: training that is killed at random moments ends with the same bits.

Trains a small network twice with --deterministic, on drawn pictures, with all that has state or draws at
random: once undisturbed, and once ended by SIGKILL again and again and started again. A quarter of the kills
come while the process starts, the others spread over the run: in steps, checkpoints (one after each step),
figures and the report. Should it end before it was killed often enough, it is compared, and another begins.
Prints a line per kill; exits with 1 if a weight, an average, the optimizer's state or a figure differs.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, Field

from benchmarks.flags import parse_flags
from benchmarks.killed_runs.same_bits import differences
from benchmarks.small_data.drawn import scenes
from benchmarks.small_data.image_folder import write_folder
from foldserve.demo.children import ending_with_us, environment_without_settings
from foldserve.training.checkpoint import LAST_FILE, load_checkpoint

PROGRAM = "benchmarks.killed_runs"
_TRAIN, _TEST = 240, 60
_SHARE_AT_START = 0.25
_FLAGS = [
    "--arch=lenet",
    "--deterministic",
    "--device=cpu",
    "--threads=1",
    "--precision=fp32",
    "--batch-size=8",
    "--checkpoint-every=0",
    "--ema-decay=0.99",
    "--dropout=0.2",
    "--prune-images=0.3",
    "--class-weights=balanced",
    "--mixup=0.2",
    "--auto-augment=trivial",
    "--lr=0.01",
]


class Config(BaseModel, frozen=True, use_attribute_docstrings=True):
    """How often the run is killed, and when."""

    kills: int = Field(20, ge=1)
    """Number of kills."""

    epochs: int = Field(20, ge=2)
    """Epochs of the run, of 21 steps each."""

    seed: int | None = None
    """Seed of the moments; by default another one each time, which is printed."""


def main() -> int:
    """Train, kill, go on, compare; return 1 if something differs."""
    config = parse_flags(Config, PROGRAM)
    seed = random.SystemRandom().randrange(2**31) if config.seed is None else config.seed
    with TemporaryDirectory(prefix="foldserve-kills-") as name:
        place = Path(name)
        pictures = write_folder(place / "pictures", islice(scenes(_TRAIN), _TRAIN + _TEST))
        whole = place / "whole"
        startup_s, took_s = _train_undisturbed(pictures, whole, config)
        print(
            f"undisturbed: {_step(whole)} steps in {took_s:.1f} s, the first after {startup_s:.1f} s; seed "
            f"of the moments {seed}",
            flush=True,
        )
        moments = _Moments(startup_s, (took_s - startup_s) / config.kills, random.Random(seed))
        found = _kill_again_and_again(config, whole, pictures, moments)
    for line in found:
        print(f"DIFFERENT: {line}")
    print(f"killed {config.kills} times: {'not the same bits' if found else 'the same bits each time'}")
    return 1 if found else 0


@dataclass(frozen=True)
class _Moments:
    """Draws when a process is killed: one in four as it starts, the others spread over the run."""

    startup_s: float
    step_s: float
    random: random.Random

    def draw_s(self) -> float:
        if self.random.random() < _SHARE_AT_START:
            return self.random.uniform(0, self.startup_s)
        return self.startup_s + self.random.uniform(0, 2 * self.step_s / (1 - _SHARE_AT_START))


def _train_undisturbed(pictures: Path, run: Path, config: Config) -> tuple[float, float]:
    """Return after how many seconds there was a first checkpoint, and how many it took in all."""
    started = time.monotonic()
    process = _start(pictures, run, config)
    while process.poll() is None and not (run / LAST_FILE).exists():
        time.sleep(0.02)
    startup_s = time.monotonic() - started
    assert _wait(process, None)
    return startup_s, time.monotonic() - started


def _kill_again_and_again(config: Config, whole: Path, pictures: Path, moments: _Moments) -> list[str]:
    """Return what differs from the run in ``whole``."""
    found: list[str] = []
    kills = runs = 0
    run = whole.with_name("killed-0")
    while kills < config.kills:
        moment_s = moments.draw_s()
        if _wait(_start(pictures, run, config), moment_s):
            found += differences(whole, run)
            runs += 1
            run = whole.with_name(f"killed-{runs}")
            continue
        kills += 1
        left = ", while it wrote a file" if list(run.glob(".*.part")) else ""
        print(f"kill {kills}: after {moment_s:.2f} s, at step {_step(run)}{left}", flush=True)
    assert _wait(_start(pictures, run, config), None)
    return found + differences(whole, run)


def _start(pictures: Path, run: Path, config: Config) -> subprocess.Popen[bytes]:
    words = ["train", "--dataset", str(pictures), "--run-dir", str(run), f"--epochs={config.epochs}", *_FLAGS]
    command = [sys.executable, "-m", "foldserve", *words]
    environment = environment_without_settings() | {"XDG_CACHE_HOME": str(pictures.parent / "cache")}
    return subprocess.Popen(ending_with_us(command), env=environment, stdout=subprocess.DEVNULL)


def _wait(process: subprocess.Popen[bytes], kill_after_s: float | None) -> bool:
    """Return whether the process came to its end; kill it otherwise.

    Raises:
        SystemExit: training failed.
    """
    try:
        status = process.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == -signal.SIGKILL:
            return False
    if status:
        raise SystemExit(f"training failed with status {status}")
    return True


def _step(run: Path) -> int:
    """Return the step of the run's last checkpoint; 0 if it has none."""
    if not (run / LAST_FILE).exists():
        return 0
    trainer = load_checkpoint(run / LAST_FILE).trainer
    assert trainer is not None
    return int(trainer["step"])


if __name__ == "__main__":
    sys.exit(main())
