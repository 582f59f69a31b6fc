"""`make bench`: every benchmark is listed, with what it measures."""

import subprocess
import sys

from tests.support.sources import ROOT


def test_every_program_is_listed_with_one_line() -> None:
    programs = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in (ROOT / "benchmarks").rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    # The servers and loads that a benchmark starts are not for the user to start.
    programs = {name for name in programs if name.count(".") == 1}
    command = [sys.executable, "-m", "benchmarks"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("  python -m ")]
    assert {line.split()[2] for line in lines} == programs
    assert all(len(line.split()) > 5 for line in lines)
