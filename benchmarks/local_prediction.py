"""`python -m benchmarks.local_prediction`: `foldserve predict` against raw ONNX Runtime plus decoding.

The limit is what two programs without anything else would reach one after the other, each on all CPUs: one
that reads and prepares the files in threads, and one that runs the prepared pixels in batches (the better of
a session with all threads and one thread per CPU). Rounds of all three take turns in one process. On a
machine that does other work the clock favours whoever has more threads, so the ratio is that of CPU time too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.serving.networks import alexnet, lenet
from foldserve import LocalModel
from foldserve.artifact.format import IMAGE, OUTPUTS
from foldserve.imaging import prepare_image
from foldserve.local.local_model import answer_all
from foldserve.local.output import RowFile
from foldserve.local.predict import to_rows
from foldserve.local.sources import open_source
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_BATCH = 32
_GOAL = 0.9
_CHUNK = 32


def main() -> int:
    """Measure both networks and print a line for each; return 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        small = lenet(workspace)
        files = _write(workspace / "small", 3000, (28, 28), "L", ".png")
        _measure("LeNet, 28x28 PNG", small.model_file.parent, files, args.rounds)
        large = alexnet(workspace, None)
        files = _write(workspace / "large", 200, (320, 256), "RGB", ".jpg")
        _measure("AlexNet-224, 320x256 JPEG", large.model_file.parent, files, args.rounds)
    return 0


def _write(folder: Path, count: int, size: tuple[int, int], mode: str, suffix: str) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
        picture.save(folder / f"{index:05}{suffix}")
    return folder


def _measure(name: str, version: Path, folder: Path, rounds: int) -> None:
    paths = sorted(folder.iterdir())
    with LocalModel(version, device="cpu", batch_size=_BATCH) as model:
        spec = model.metadata.image
        pixels = np.stack([prepare_image(path.read_bytes(), spec) for path in paths])
        run_raw = _fastest_runner((version / "model.onnx").read_bytes(), pixels)

        def predict() -> None:
            out = folder.parent / "labels.jsonl"
            with RowFile(out, resume=False, overwrite=True) as rows:
                rows.begin({}, 1)
                for answered in answer_all([model], open_source(folder).items):
                    rows.write(to_rows(answered, 1, 0.0))
                rows.finish()

        def decode() -> None:
            chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
            with ThreadPoolExecutor(usable_cpus()) as pool:
                list(
                    pool.map(lambda chunk: [prepare_image(path.read_bytes(), spec) for path in chunk], chunks)
                )

        predict()
        timed = [[_timed(work) for work in (decode, run_raw, predict)] for _ in range(rounds)]
    rates = [
        statistics.median(len(paths) / each.wall_s for each in column) for column in zip(*timed, strict=True)
    ]
    ratios = [(decoded.wall_s + raw.wall_s) / predicted.wall_s for decoded, raw, predicted in timed]
    cpu_ratios = [(decoded.cpu_s + raw.cpu_s) / predicted.cpu_s for decoded, raw, predicted in timed]
    ratio = statistics.median(ratios)
    print(
        f"- {name}: predict {rates[2]:,.0f} images/s; decoding alone {rates[0]:,.0f}, raw ONNX Runtime alone "
        f"{rates[1]:,.0f}; ratio to both {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), by CPU time "
        f"{statistics.median(cpu_ratios):.2f}, goal {_GOAL}: {'met' if ratio >= _GOAL else 'MISSED'}"
    )


def _fastest_runner(model: bytes, pixels: NDArray[np.uint8]) -> Callable[[], None]:
    """Return what runs all ``pixels`` on all CPUs in the faster of two ways."""
    batches = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    shared = Session(model, device="cpu", intra_op_threads=usable_cpus())
    single = Session(model, device="cpu", intra_op_threads=1)

    def together() -> None:
        for batch in batches:
            shared.run(OUTPUTS, {IMAGE: batch})

    def side_by_side() -> None:
        with ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(lambda batch: single.run(OUTPUTS, {IMAGE: batch}), batches))

    for warm in (together, side_by_side):
        warm()
    return min((together, side_by_side), key=lambda work: _timed(work).cpu_s)


class _Time(NamedTuple):
    wall_s: float
    cpu_s: float


def _timed(work: Callable[[], None]) -> _Time:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return _Time(time.perf_counter() - started_s, time.process_time() - cpu_s)


if __name__ == "__main__":
    sys.exit(main())
