"""`python -m benchmarks.networks`: exports torchvision, timm and ONNX files; a table of docs/benchmarks.md.

Each network runs in a process of its own, with a limit of time and memory; a crash is a row like any other.
Rows are appended to a file of JSON lines, and a second start does what is missing. Each row has

    outcome   right: published, and right by the float64 network on images that the export did not see; wrong:
              published, and not right; refused; crashed; stopped (a limit)
    pytorch   the same of the file that torch.onnx.export(dynamo=True) writes with its defaults

Weights are not trained ones, which would have to be fetched: `statistics` says what replaces them. Images are
as small as each network allows (`names.txt`), so that the whole list takes hours and not days.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.networks.environment import ROOT, EnvironmentMissingError, networks_python
from benchmarks.networks.flags import add_flags
from benchmarks.networks.kept import kept
from benchmarks.networks.results import read_results
from benchmarks.networks.table import all_networks, failures, kinds, summary
from foldserve.demo.children import ending_with_us, environment_without_settings


def main() -> int:
    """Run what is missing, print the tables; return 0 if everything was run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    args = parser.parse_args()
    if not args.table:
        try:
            python = networks_python()
        except EnvironmentMissingError as error:
            print(f"python -m benchmarks.networks: {error}", file=sys.stderr)
            return 1
        command = [python, "-m", "benchmarks.networks.run", *sys.argv[1:]]
        # One thread each: what is compared is right or wrong, and seconds of the processor.
        variables = environment_without_settings() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(ending_with_us(command), env=variables, check=False)
        if done.returncode:
            return done.returncode
    rows = list(read_results(args.results).values())
    for title, text in (
        ("Summary", summary(rows)),
        ("Not published and right", failures(rows)),
        ("Reasons", kinds(rows)),
        ("Batch norms that were not folded", kept(rows)),
        ("All networks", all_networks(rows)),
    ):
        print(f"\n## {title}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
