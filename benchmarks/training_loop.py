"""`python -m benchmarks.training_loop`: overhead of the training loop over the bare network.

Three programs alternate on the same network, batch size and number of steps, so that a noisy machine
affects them alike. *loop* is `train_one_epoch` as `foldserve train` runs it (gather, augmentation,
normalisation, schedule, optimizer, statistics); *bare* is forward and backward on one batch of floats in
memory; *step* adds the optimizer step. The figure is the median ratio over the rounds: the cost of
everything around the network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from foldserve.imaging import ImageSpec
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import Dataset, Examples
from foldserve.training.engine.device import prepare_device
from foldserve.training.engine.loop import train_one_epoch
from foldserve.training.engine.precision import choose_precision
from foldserve.training.run.run_state import start_run

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="lenet")
    parser.add_argument("--batch-size", type=int, default=TrainConfig().batch_size)
    parser.add_argument("--side", type=int, default=28, help="of the images, in pixels")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=1)
    parser.add_argument("--steps", type=int, default=40, help="steps a measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each program, taking turns")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="on the CPU; torch's own number by default")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    args = parser.parse_args()

    config = TrainConfig(
        arch=args.arch,
        batch_size=args.batch_size,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
        run_dir=Path("unused"),
    )
    device = prepare_device(config)
    dataset = random_dataset(args.steps * args.batch_size, args.channels, args.side)
    examples = Examples(dataset.train_images, dataset.train_labels).to(device)
    programs = {
        "loop": loop_program(config, dataset, examples, device),
        "bare": bare_program(config, dataset, examples, device, args.steps, with_optimizer=False),
        "step": bare_program(config, dataset, examples, device, args.steps, with_optimizer=True),
    }
    seconds = take_turns(programs, args.rounds, device)
    precision = choose_precision(config, device).name
    print(
        f"{args.arch}, batch {args.batch_size}, {args.steps} steps x {args.rounds} rounds, {device}, "
        f"{precision}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, times in seconds.items():
        ratios = [loop / own for loop, own in zip(seconds["loop"], times, strict=True)]
        low_ms, median_ms, high_ms = (
            1000 * pick(times) / args.steps for pick in (min, statistics.median, max)
        )
        print(
            f"  {name:5} {median_ms:7.3f} ms a step ({low_ms:.3f} to {high_ms:.3f})   "
            f"loop / {name}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def random_dataset(count: int, channels: int, side: int) -> Dataset:
    """Return ``count`` images of noise; speed does not depend on their content."""
    images = torch.randint(256, (count, channels, side, side), dtype=torch.uint8)
    labels = torch.arange(count) % 10
    return Dataset(
        name="noise",
        labels=tuple("0123456789"),
        image=ImageSpec("L" if channels == 1 else "RGB", side, side, resize_shorter_side=side),
        train_images=images,
        train_labels=labels,
        test_images=images[:10],
        test_labels=labels[:10],
    )


def loop_program(
    config: TrainConfig, dataset: Dataset, examples: Examples, device: torch.device
) -> Callable[[], None]:
    """Return a function that trains one epoch with the product's own loop."""
    trainer = start_run(config, dataset, examples, device).trainer

    def run() -> None:
        trainer.step = 0
        train_one_epoch(trainer, examples, lambda _: None)

    return run


def bare_program(
    config: TrainConfig,
    dataset: Dataset,
    examples: Examples,
    device: torch.device,
    steps: int,
    *,
    with_optimizer: bool,
) -> Callable[[], None]:
    """Return a function that runs forward and backward ``steps`` times on one batch."""
    trainer = start_run(config, dataset, examples, device).trainer
    network, optimizer = trainer.model.network, trainer.optimizer
    images = examples.images[: config.batch_size].to(device).float().div(255)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = examples.labels[: config.batch_size].to(device)

    def run() -> None:
        for _ in range(steps):
            with trainer.precision.computing():
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            if with_optimizer:
                optimizer.step()
            network.zero_grad()

    return run


def take_turns(
    programs: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return seconds of each program by round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for round_index in range(rounds + 1):
        for name, run in programs.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_index:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
