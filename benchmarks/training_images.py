"""`python -m benchmarks.training_images`: overhead of training from a folder of images.

Writes JPEGs of random shapes into FOLDER/{train,val}/CLASS and alternates between two programs on the same
network, batch size and threads: `foldserve train` on that folder (cached pixels, augmentation, checkpoints;
the epochs after the first), and forward, backward and optimizer step on one batch of floats in memory. Both
are also compared with the device's limit: the speed of a large matrix multiplication in the same number
format.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_loop import bare_program
from foldserve.terminal import Terminal
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import load_dataset, split_train
from foldserve.training.engine.device import prepare_device
from foldserve.training.engine.precision import choose_precision
from foldserve.training.run.run_folder import METRICS_FILE
from foldserve.training.run.train import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from foldserve.training.datasets import Dataset, Examples

_CLASS_COUNT = 4
_SHAPES = 12  # an image: JPEGs of about the size that photographs of these sides have
_BARE_STEPS = 8


@dataclass(frozen=True)
class Rates:
    """Images per second of one round."""

    loop: float
    bare: float


def main() -> None:
    """Measure and print the speed of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="alexnet")
    parser.add_argument("--images", type=int, default=1200, help="training images")
    parser.add_argument("--side", type=int, default=224, help="of what the network sees, in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="a round; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="on the CPU; torch's own number by default")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as workspace:
        folder = write_folder(Path(workspace) / "images", args.images)
        config = TrainConfig(
            arch=args.arch,
            dataset=str(folder),
            image_size=args.side,
            epochs=args.epochs,
            batch_size=args.batch_size,
            device=args.device,
            threads=args.threads or torch.get_num_threads(),
            run_dir=Path(workspace) / "run",
        )
        measure(config, args.rounds)


def write_folder(folder: Path, count: int) -> Path:
    """Write ``count`` training images, and a fourth as many for the final judgement."""
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", count // 4)):
        for index in range(images):
            file = folder / split / f"class-{index % _CLASS_COUNT}" / f"{index:05}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            shapes = generator.integers(0, 256, (_SHAPES, _SHAPES, 3), dtype=np.uint8)
            Image.fromarray(shapes).resize((320, 256), Image.Resampling.BICUBIC).save(file)
    return folder


def measure(config: TrainConfig, rounds: int) -> None:
    """Take turns for ``rounds`` and print the rates, their ratio and the share of the device's limit."""
    device = prepare_device(config)
    started = time.perf_counter()
    dataset = load_dataset(config.dataset, image_size=config.image_size, terminal=Terminal.silent())
    decoding_s = time.perf_counter() - started
    training, _ = split_train(dataset, config.validation_count)
    bare = bare_program(config, dataset, training, device, _BARE_STEPS, with_optimizer=True)
    bare()
    rates = []
    for index in range(rounds):
        loop = loop_rate(config.model_copy(update={"run_dir": config.run_dir.with_name(f"run-{index}")}))
        rates.append(Rates(loop, bare=_BARE_STEPS * config.batch_size / seconds_of(bare, device)))
    precision = choose_precision(config, device).name
    images = len(dataset.train_images) + len(dataset.test_images)
    print(
        f"{config.arch} at {config.image_size} pixels, batch {config.batch_size}, {device}, {precision}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds"
    )
    print(f"  decoded and cached once: {images / decoding_s:,.0f} images/s")
    flops_an_image = step_flops(config, dataset, training, device) / config.batch_size
    limit = matrix_flops_a_second(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    for name in ("loop", "bare"):
        values = [getattr(one, name) for one in rates]
        reached = statistics.median(values) * flops_an_image
        print(
            f"  {name}: {statistics.median(values):,.1f} images/s "
            f"({min(values):,.1f} to {max(values):,.1f}), {reached / 1e9:,.0f} GFLOP/s, "
            f"{reached / limit:.0%} of what a matrix multiplication reaches"
        )
    ratios = [one.loop / one.bare for one in rates]
    print(f"  loop / bare: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def loop_rate(config: TrainConfig) -> float:
    """Train as the command does and return the images per second of the epochs after the first."""
    train(config, Terminal.silent())
    records = [json.loads(line) for line in (config.run_dir / METRICS_FILE).read_text().splitlines()]
    return float(statistics.median(record["images_per_s"] for record in records[1:]))


def seconds_of(program: Callable[[], object], device: torch.device) -> float:
    """Return how long ``program`` takes."""
    started = time.perf_counter()
    program()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def step_flops(config: TrainConfig, dataset: Dataset, training: Examples, device: torch.device) -> int:
    """Return the floating point operations of one forward and backward pass, counted by torch."""
    step = bare_program(config, dataset, training, device, 1, with_optimizer=False)
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def matrix_flops_a_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of the fastest of several large matrix multiplications."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(dtype)
    fastest_s = min(seconds_of(lambda: matrix @ matrix, device) for _ in range(6))
    return 2 * side**3 / fastest_s


if __name__ == "__main__":
    main()
