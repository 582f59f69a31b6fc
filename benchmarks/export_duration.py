"""`python -m benchmarks.export_duration`: time and memory of `foldserve export` with all its checks.

Each network is exported by a process of its own, as a user starts it: from seeded weights or from an ONNX
file, at 224 pixels, with 1,000 classes, verified on seeded synthetic images; `alexnet-jpegs` is verified on
1,000 JPEGs of a folder instead, the default above 64 pixels. Prints the seconds by the clock, those of the
CPUs, and the largest resident memory of that process, as a Markdown table, with the limits that this project
set.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Nothing heavy is imported here: Linux counts the memory that a process had before it executed another
# program as that program's, so this process has to be smaller than any that it measures.
from foldserve.demo.children import ending_with_us

_SIDE = 224
_CLASS_COUNT = 1000
_FOLDER_CLASS_COUNT = 4  # of the folder's images


@dataclass(frozen=True)
class Case:
    """An export to measure, and its limits; None where none is set."""

    name: str
    arch: str
    from_onnx: bool = False
    jpeg_count: int = 0
    most_cpu_s: float | None = None
    most_s: float | None = None
    most_mib: float = 2500 * 1000 * 1000 / 2**20  # 2.5 GB


CASES = (
    Case("alexnet", "alexnet", most_cpu_s=15.0),
    Case("alexnet-jpegs", "alexnet", jpeg_count=1200, most_s=60.0),
    Case("vgg16", "vgg16"),
    Case("resnet50", "resnet50"),
    Case("squeezenet-onnx", "squeezenet", from_onnx=True),
    Case("resnet50-onnx", "resnet50", from_onnx=True),
    Case("vgg16-onnx", "vgg16", from_onnx=True),
)
_WRITE_JPEGS = """
import sys
from pathlib import Path
from benchmarks.training_images import write_folder
write_folder(Path(sys.argv[1]), int(sys.argv[2]))
"""
_OWN = {"vgg16", "resnet50", "squeezenet"}


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    exit_status: int
    wall_s: float
    cpu_s: float
    peak_mib: float

    def verdict(self, case: Case) -> str:
        """Return whether the limits are met, each with its name where it is not."""
        limits = (
            (self.cpu_s, case.most_cpu_s, "s of the CPUs"),
            (self.wall_s, case.most_s, "s"),
            (self.peak_mib, case.most_mib, "MiB"),
        )
        missed = [
            f"MISSED: at most {most:g} {unit}"
            for value, most, unit in limits
            if most is not None and value > most
        ]
        return "; ".join(missed) or "met"


def main() -> int:
    """Export each network once and print the table; return 1 if an export fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(case.name for case in CASES)}"
    )
    parser.add_argument("--verbose", action="store_true", help="show the output of the exports")
    args = parser.parse_args()
    names = args.cases or [case.name for case in CASES]
    if unknown := sorted(set(names) - {case.name for case in CASES}):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(case.name for case in CASES)}")

    failed = False
    print("| export | wall s | CPU s | peak MiB | limits |")
    print("|---|---|---|---|---|", flush=True)
    for case in [case for case in CASES if case.name in names]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "foldserve", *_arguments(case, Path(folder))]
            cost = measure(command, is_silent=not args.verbose)
        verdict = cost.verdict(case) if cost.exit_status == 0 else f"exit status {cost.exit_status}"
        print(
            f"| {case.name} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_mib:,.0f} | {verdict} |",
            flush=True,
        )
        failed |= cost.exit_status != 0
    return int(failed)


def _arguments(case: Case, workspace: Path) -> list[str]:
    """Write what ``case`` exports into ``workspace``; return the arguments of the command."""
    suffix = "onnx" if case.from_onnx else "pt"
    network = workspace / f"{case.arch}.{suffix}"
    class_count = _FOLDER_CLASS_COUNT if case.jpeg_count else _CLASS_COUNT
    _run("-m", "benchmarks.export_networks", case.arch, network, "--classes", class_count)
    labels = [f"class-{index}" for index in range(class_count)]
    (workspace / "labels.txt").write_text("\n".join(labels))
    arguments = ["export", "--labels", str(workspace / "labels.txt"), "--name", "measured", "--no-skip-same"]
    arguments += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    arguments += ["--repository", str(workspace / "models")]
    if case.from_onnx:
        arguments.append(str(network))
    else:
        arch = f"benchmarks.export_networks:{case.arch}" if case.arch in _OWN else case.arch
        arguments += ["--arch", arch, "--weights", str(network), "--input", f"3x{_SIDE}x{_SIDE}"]
    if case.jpeg_count:
        images = workspace / "images"
        _run("-c", _WRITE_JPEGS, images, case.jpeg_count)
        arguments += ["--images", str(images / "train")]
    return arguments


def _run(*arguments: object) -> None:
    subprocess.run(ending_with_us([sys.executable, *arguments]), check=True, stdout=subprocess.DEVNULL)


def measure(command: list[str], *, is_silent: bool = True) -> Cost:
    """Run ``command`` and return what it took."""
    started_s = time.perf_counter()
    process = subprocess.Popen(ending_with_us(command), stdout=subprocess.DEVNULL if is_silent else None)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(
        exit_status=process.returncode,
        wall_s=time.perf_counter() - started_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,  # Linux counts in KiB
    )


if __name__ == "__main__":
    sys.exit(main())
