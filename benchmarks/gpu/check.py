"""`make gpu-check`: all that is to be seen on a machine with an NVIDIA GPU, in twelve minutes at most.

The steps: `pytest -m gpu`; two epochs of AlexNet in bf16; exports in fp32 and fp16, proven on CUDA and proven
again by `models verify`; PyTorch, ONNX Runtime, IO binding and CUDA graphs side by side, and served; servers
that share a port beside mosec. A step that fails or runs out of time does not hold up the next. Without a GPU
it is a rehearsal on the CPU, with small sizes, which says what it skipped. The output of each step is kept.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.pictures import write_pictures
from foldserve.demo.children import ending_with_us
from foldserve.runtime.session import RUNTIME_VERSION, cuda_is_present

_LIMIT_S = 720.0
_PYTHON = sys.executable
_FOLDSERVE = (_PYTHON, "-m", "foldserve")


@dataclass(frozen=True)
class Step:
    """A command with its own limit; ``skipped`` says why it is not run."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    skipped: str = ""


def steps(folder: Path, *, has_gpu: bool, dataset: str) -> list[Step]:
    """Return what to run, most wanted first, writing into ``folder``."""
    device = "cuda" if has_gpu else "cpu"
    run, models = str(folder / "run"), str(folder / "models")
    train: tuple[str, ...] = (
        "train",
        "--arch",
        "alexnet",
        "--dataset",
        dataset,
        "--run-dir",
        run,
        "--device",
        device,
    )
    train += ("--precision", "bf16") if has_gpu else ("--precision", "fp32", "--batch-size", "16")
    export = ("export", run, "--repository", models)  # proven on every device that there is
    figures = ("-m", "benchmarks.gpu", "--json-file", str(folder / "figures.json"))
    small = () if has_gpu else ("--networks", "lenet", "--batch-sizes", "1", "8", "--seconds", "0.2")
    return [
        Step(
            "pytest -m gpu",
            (_PYTHON, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:xdist", "-rs", "tests"),
            240,
            "" if has_gpu else "no GPU: all of these tests need one",
        ),
        Step("train alexnet, two epochs", (*_FOLDSERVE, *train, "--epochs", "2"), 120),
        Step("export fp32", (*_FOLDSERVE, *export, "--name", "alexnet"), 120),
        Step(
            "export fp16",
            (*_FOLDSERVE, *export, "--name", "alexnet-fp16", "--precision", "fp16"),
            120,
        ),
        Step(
            "models verify", (*_FOLDSERVE, "models", "verify", "--repository", models, "--device", device), 60
        ),
        Step("PyTorch beside ONNX Runtime", (_PYTHON, *figures, *small, "--parts", "in-process"), 180),
        Step("served", (_PYTHON, *figures, *small, "--parts", "served"), 240),
        Step("servers on one port", (_PYTHON, "-m", "benchmarks.gpu.replicas"), 120),
    ]


def run(step: Step, output: Path, left_s: float) -> tuple[str, float]:
    """Run a step, writing what it prints to ``output``; return how it ended and the seconds it took."""
    if step.skipped:
        return f"skipped: {step.skipped}", 0.0
    if left_s <= 0:
        return "skipped: the time is over", 0.0
    started_s = time.monotonic()
    with output.open("wb") as stream:
        process = subprocess.Popen(
            ending_with_us(step.command), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(min(step.limit_s, left_s))
            ended = "ok" if status == 0 else f"FAILED with status {status}"
        except subprocess.TimeoutExpired:
            ended = "FAILED: out of time"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return ended, time.monotonic() - started_s


def main() -> int:
    """Run all steps and print a table; return 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu-check")))
    parser.add_argument("--dataset", help="of `foldserve train`; by default pictures are made")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.out.resolve()
    has_gpu = torch.cuda.is_available() and cuda_is_present()
    card = torch.cuda.get_device_name() if has_gpu else "no GPU: a rehearsal on the CPU"
    print(f"{card}; torch {torch.__version__}, onnxruntime {RUNTIME_VERSION}", flush=True)
    dataset = arguments.dataset or str(write_pictures(folder / "pictures", per_class=500 if has_gpu else 40))
    until_s = time.monotonic() + _LIMIT_S
    failed = 0
    for number, step in enumerate(steps(folder, has_gpu=has_gpu, dataset=dataset), start=1):
        output = folder / f"{number}.txt"
        ended, took_s = run(step, output, until_s - time.monotonic())
        failed += ended.startswith("FAILED")
        print(f"{number} {step.name:30} {took_s:5.0f} s  {ended}", flush=True)
        if ended.startswith("FAILED"):
            print("".join(f"    {line}\n" for line in output.read_text(errors="replace").splitlines()[-8:]))
    print(f"the output of each step is in {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
