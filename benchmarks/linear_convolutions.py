"""`python -m benchmarks.linear_convolutions`: what writing a convolution as a linear layer gains.

VGG-11 with convolutions for its fully connected layers (as Caffe's and timm's are), at 224 pixels, with
seeded weights: the file of `torch.onnx.export` against foldserve's, in ONNX Runtime with one thread. Prints
CPU time per image as the least of some rounds, the two files in turn, and the peak of memory while each is
loaded, by processes of their own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.demo.children import ending_with_us

if TYPE_CHECKING:
    from torch import nn

_SIDE = 224
_CLASS_COUNT = 1000
_BATCH_SIZES = (1, 2, 4, 16)
_WIDTHS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
_LOAD = """
import sys
from pathlib import Path
from foldserve.runtime.session import Session

def mib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

before = mib("VmRSS")
Session(Path(sys.argv[1]), device="cpu", intra_op_threads=1)
print(mib("VmHWM") - before)
"""


def main() -> int:
    """Write both files, load and run them, print a table; return 0."""
    parser = argparse.ArgumentParser(description="compares convolutions with linear layers")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "as PyTorch writes it": Path(folder) / "theirs.onnx",
            "foldserve": Path(folder) / "ours.onnx",
        }
        _write(*files.values())
        peaks = {name: _loading_peak_mib(path) for name, path in files.items()}
        _print_times(files, peaks, args.rounds)
    return 0


def vgg11_of_convolutions() -> nn.Module:
    """Return VGG-11 (Simonyan and Zisserman 2014) without a linear layer: 133 M parameters."""
    from torch import nn  # noqa: PLC0415  # not in the process that measures memory

    layers: list[nn.Module] = []
    channels = 3
    for width in _WIDTHS:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    layers += [nn.Conv2d(channels, 4096, 7), nn.ReLU(), nn.Conv2d(4096, 4096, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(4096, _CLASS_COUNT, 1), nn.Flatten())


def _write(theirs: Path, ours: Path) -> None:
    import torch  # noqa: PLC0415

    from foldserve.artifact.format import ModelMetadata  # noqa: PLC0415
    from foldserve.export.graph.build import build_model  # noqa: PLC0415
    from foldserve.export.graph.trace import trace  # noqa: PLC0415
    from foldserve.imaging import ImageSpec  # noqa: PLC0415

    torch.manual_seed(0)
    network = vgg11_of_convolutions().eval()
    example = torch.zeros(2, 3, _SIDE, _SIDE)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(theirs, external_data=False)
    spec = ImageSpec(channel_order="RGB", height=_SIDE, width=_SIDE, resize_shorter_side=_SIDE)
    labels = tuple(f"class {index}" for index in range(_CLASS_COUNT))
    metadata = ModelMetadata(labels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), spec)
    ours.write_bytes(build_model(trace(network, (3, _SIDE, _SIDE)).model, metadata).content)


def _loading_peak_mib(path: Path) -> float:
    command = [sys.executable, "-c", _LOAD, path]
    done = subprocess.run(ending_with_us(command), capture_output=True, text=True, check=True)
    return float(done.stdout)


def _print_times(files: dict[str, Path], peaks: dict[str, float], rounds: int) -> None:
    import numpy as np  # noqa: PLC0415

    from foldserve.runtime.session import Session  # noqa: PLC0415

    sessions = {name: Session(path, device="cpu", intra_op_threads=1) for name, path in files.items()}
    print(f"| ms of CPU per image in batches of | {' | '.join(map(str, _BATCH_SIZES))} | MiB to load |")
    print("|---|" + "---:|" * (len(_BATCH_SIZES) + 1))
    least = {name: dict.fromkeys(_BATCH_SIZES, float("inf")) for name in sessions}
    for size in _BATCH_SIZES:
        pixels = np.random.default_rng(0).integers(0, 256, (size, 3, _SIDE, _SIDE), dtype=np.uint8)
        for _ in range(rounds):
            for name, session in sessions.items():
                (spec,) = session.inputs
                images = pixels if spec.datatype == "UINT8" else pixels.astype(np.float32)
                started = time.process_time()
                session.run([session.outputs[0].name], {spec.name: images})
                least[name][size] = min(least[name][size], (time.process_time() - started) / size * 1e3)
    for name, times in least.items():
        print(f"| {name} | {' | '.join(f'{ms:.1f}' for ms in times.values())} | {peaks[name]:,.0f} |")
    theirs, ours = least.values()
    print(f"| ratio | {' | '.join(f'{theirs[size] / ours[size]:.2f}' for size in _BATCH_SIZES)} | |")


if __name__ == "__main__":
    sys.exit(main())
