"""`python -m benchmarks.export_duration`: duration of `foldserve export` with all its checks.

Exports AlexNet at 224 pixels with seeded weights and random batch norm statistics. The predictions are
checked on 1,000 JPEGs of a folder, the default above 64 pixels. The command runs in a process of its own,
as a user starts it. Prints its output, each line with the second at which it came, and the limit that this
project set.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.export_figures import with_random_statistics
from benchmarks.training_images import write_folder
from foldserve.demo.children import ending_with_us
from foldserve.training.models import create_model

_SIDE = 224
_CLASS_COUNT = 4  # of the folder's images
_MOST_S = 60.0


def main() -> int:
    """Export once and print; return the exit status of the export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="alexnet")
    parser.add_argument("--images", type=int, default=1200, help="in the folder")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        write_weights(args.arch, workspace / "weights.pt")
        images = write_folder(workspace / "images", args.images) / "train"
        labels = sorted(each.name for each in images.iterdir())
        (workspace / "labels.txt").write_text("\n".join(labels))
        command = [sys.executable, "-m", "foldserve", "export", "--arch", args.arch]
        command += ["--weights", str(workspace / "weights.pt"), "--input", f"3x{_SIDE}x{_SIDE}"]
        command += ["--labels", str(workspace / "labels.txt"), "--images", str(images)]
        command += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
        command += ["--repository", str(workspace / "models")]
        return run(command)


def write_weights(arch: str, file: Path) -> None:
    """Save seeded weights, with batch norm statistics that do something."""
    torch.manual_seed(0)
    network = create_model(arch, in_channels=3, class_count=_CLASS_COUNT, height=_SIDE, width=_SIDE)
    with_random_statistics(network)
    torch.save(network.state_dict(), file)


def run(command: list[str]) -> int:
    """Run the export and print its lines, each with its second, and the verdict."""
    started_s = time.perf_counter()
    with subprocess.Popen(
        ending_with_us(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{time.perf_counter() - started_s:6.1f} s  {line}", end="", flush=True)
    took_s = time.perf_counter() - started_s
    if process.returncode == 0:
        verdict = "met" if took_s <= _MOST_S else "MISSED"
        print(f"- exported in {took_s:.1f} s, at most {_MOST_S:g} s: {verdict}")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
