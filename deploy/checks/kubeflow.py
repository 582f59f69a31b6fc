"""Runs the training of trainjob.yaml by the local process backend of Kubeflow's SDK: `make check-kubeflow`.

The backend takes no manifests, but a function of Python and the packages that it needs. So the flags are read
from deploy/kubernetes/training/trainjob.yaml, its folders replaced by temporary ones, and given to
examples/kubeflow_train.py with a wheel of this checkout; the backend installs it, with PyTorch, in a virtual
environment of the job's own. As many processes as the manifest has nodes train together and must leave one
checkpoint. A job without packages must fail. Needs a package index; no cluster is involved.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.pictures import write_pictures
from deploy.checks.errors import CheckError
from foldserve.demo.children import ending_with_us

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kubeflow_train.py"
MANIFEST = ROOT / "deploy" / "kubernetes" / "training" / "trainjob.yaml"
PYTHON = ROOT / ".venv-kubeflow" / "bin" / "python"
TORCH = "torch==2.13.0"
# Beyond the manifest's: small, so that most of the trial's minutes are pip's.
SMALL = ("--epochs=2", "--batch-size=16", "--threads=1")
_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "foldserve", "training", "export", "serving")


def read_trainer() -> Any:
    """Return the manifest's trainer."""
    return yaml.safe_load(MANIFEST.read_text())["spec"]["trainer"]


def flags_of(trainer: Any, *, data: Path, run: Path) -> list[str]:
    """Return the trainer's flags of `foldserve train`, with these pictures and this run folder instead.

    Raises:
        CheckError: the manifest runs another command.
    """
    first, flags = [*trainer["command"], *trainer["args"][:3]], trainer["args"][3:]
    if first != ["torchrun", "-m", "foldserve", "train"]:
        raise CheckError(f"{MANIFEST.name} runs {' '.join(first)}; expected torchrun -m foldserve train")
    own = {"--dataset": data, "--run-dir": run}
    names = [flag.partition("=")[0] for flag in flags]
    if missing := own.keys() - names:
        raise CheckError(f"{MANIFEST.name} has no {', '.join(sorted(missing))}")
    kept = [flag for flag, name in zip(flags, names, strict=True) if name not in {*own, "--data-dir"}]
    return [*kept, *(f"{name}={path}" for name, path in own.items()), *SMALL]


def build_wheel(folder: Path) -> Path:
    """Build a wheel of this checkout from a copy, as building leaves files behind; return the file."""
    copy = folder / "copy"
    copy.mkdir()
    for name in _BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*words, "--wheel-dir", folder, copy], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"the wheel was not built: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def run_job(folder: Path, processes: int, packages: list[str], flags: list[str]) -> tuple[int, str]:
    """Run the example with folders of its own; return its status and what it printed, which is also shown."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = dict(
        os.environ,
        # The backend makes the job's environment with the first `python` of the path.
        PATH=f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
        PIP_CONSTRAINT=str(ROOT / "constraints.txt"),
        TMPDIR=str(temporary),
        **{variable["name"]: str(temporary) for variable in read_trainer()["env"]},
    )
    words = [PYTHON, EXAMPLE, "--processes", processes, *(["--packages", *packages] if packages else [])]
    process = subprocess.Popen(
        ending_with_us([*words, "--", *flags]),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        print(f"    {line}", end="", flush=True)
    return process.wait(), "".join(lines)


def main() -> int:
    """Run the trial and return 0 if the job trained as it should."""
    argparse.ArgumentParser(prog="python -m deploy.checks.kubeflow", description=__doc__).parse_args()
    if not PYTHON.exists():
        raise CheckError(f"needs Kubeflow's SDK in {PYTHON.parents[1]}, where `make check-kubeflow` puts it")
    trainer = read_trainer()
    processes = trainer["numNodes"] * trainer["numProcPerNode"]
    with tempfile.TemporaryDirectory(prefix="check-kubeflow-") as name:
        folder = Path(name)
        print("a job without packages, which has no torchrun:", flush=True)
        status, _ = run_job(folder, processes, [], ["--help"])
        if status == 0:
            raise CheckError("a job that cannot run was called complete")
        wheel = build_wheel(folder)
        run = folder / "run"
        flags = flags_of(trainer, data=write_pictures(folder / "pictures", per_class=60), run=run)
        print(f"{processes} processes: foldserve train {' '.join(flags)}", flush=True)
        status, told = run_job(folder, processes, [TORCH, f"foldserve[train] @ {wheel.as_uri()}"], flags)
        if status or not (run / "best.pt").exists():
            raise CheckError(f"the job ended with status {status} and left no checkpoint")
        if f"in {processes} processes" not in told:
            raise CheckError("the processes trained alone")
        if left := [path.name for path in (folder / "tmp").iterdir() if (path / "pyvenv.cfg").exists()]:
            print(f"left behind by the backend: {', '.join(left)}")
    print(f"one checkpoint, by {processes} processes that trained together")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as error:
        print(f"check-kubeflow: {error}", file=sys.stderr)
        sys.exit(1)
