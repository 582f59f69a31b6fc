"""examples/kubeflow_train.py and its trial, as far as they can be judged without Kubeflow's SDK."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.checks.errors import CheckError
from deploy.checks.kubeflow import EXAMPLE, PYTHON, flags_of, read_trainer
from foldserve.cli import parse
from foldserve.training.config import TrainConfig
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_trial_s_flags_are_the_manifest_s_with_folders_of_its_own(tmp_path: Path) -> None:
    flags = flags_of(read_trainer(), data=tmp_path / "pictures", run=tmp_path / "run")
    config = parse(["train", *flags], {})
    assert isinstance(config, TrainConfig)
    assert (config.run_dir, config.dataset) == (tmp_path / "run", str(tmp_path / "pictures"))
    assert config.data_dir is None
    assert {"--arch=lenet", "--device=cpu"} <= set(flags), "of the manifest"


def test_a_manifest_that_runs_something_else_is_refused(tmp_path: Path) -> None:
    trainer = read_trainer()
    with pytest.raises(CheckError, match="has no --run-dir"):
        flags_of(
            trainer | {"args": [flag for flag in trainer["args"] if "run-dir" not in flag]},
            data=tmp_path,
            run=tmp_path,
        )
    with pytest.raises(CheckError, match="runs python -m foldserve train"):
        flags_of(trainer | {"command": ["python"]}, data=tmp_path, run=tmp_path)


@pytest.mark.parametrize("call", ["train_node({})", "train_node(**{})"], ids=["local", "cluster"])
def test_the_function_stands_alone_in_a_file_as_both_backends_call_it(tmp_path: Path, call: str) -> None:
    tree = ast.parse(EXAMPLE.read_text())
    (function,) = [node for node in tree.body if getattr(node, "name", "") == "train_node"]
    settings = {"flags": ["--arch=no-such"], "folder": str(tmp_path)}
    script = tmp_path / "script.py"
    script.write_text(f"{ast.unparse(function)}\n{call.format(settings)}\n")
    done = subprocess.run([sys.executable, script, ""], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    *_, complaint, last = done.stderr.splitlines()
    assert "no-such" in complaint
    assert last == "foldserve train failed; the log above says why"


@pytest.mark.slow
@pytest.mark.interop
def test_kubeflow_s_local_backend_trains_with_two_processes() -> None:
    if not PYTHON.exists():
        pytest.skip(f"needs {PYTHON.relative_to(ROOT)} with Kubeflow's SDK: make check-kubeflow")
    command = [sys.executable, "-m", "deploy.checks.kubeflow"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "one checkpoint, by 2 processes" in done.stdout
