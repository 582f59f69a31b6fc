"""deploy/slurm: the script as far as it can be judged without Slurm; `make check-slurm` runs it on one."""

from __future__ import annotations

import subprocess

import torch

from deploy.checks.slurm import SCRIPT, TRAINING, same_weights
from foldserve.training.config import TrainConfig


def test_bash_reads_the_script_and_sbatch_finds_its_options_before_any_command() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    lines = SCRIPT.read_text().splitlines()
    first_command = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.removeprefix("#SBATCH ") for line in lines[:first_command] if line.startswith("#SBATCH ")]
    assert "#SBATCH" not in "\n".join(lines[first_command:]), "sbatch does not read further"
    assert {"--requeue", "--open-mode=append", "--ntasks=2"} <= set(options)


def test_the_processes_meet_at_a_port_that_linux_gives_to_nobody() -> None:
    (line,) = [line for line in SCRIPT.read_text().splitlines() if line.startswith("MASTER_PORT=")]
    for job in (1, 11_999, 12_000, 67_043_328):
        done = subprocess.run(
            ["bash", "-c", f"{line}; echo $MASTER_PORT"],
            env={"SLURM_JOB_ID": str(job)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert 20_000 <= int(done.stdout) < 32_768


def test_the_trial_s_flags_are_the_trainer_s() -> None:
    names = {flag.removeprefix("--").partition("=")[0].replace("-", "_") for flag in TRAINING}
    assert names <= TrainConfig.model_fields.keys()


def test_the_trial_s_comparison_notices_one_number_and_one_name() -> None:
    weights = {"model": {"a": torch.arange(4.0), "b": torch.ones(2, 2)}}
    same = {"model": {"a": torch.arange(4.0), "b": torch.ones(2, 2)}}
    assert same_weights(weights, same)
    same["model"]["b"][1, 1] += 1e-7
    assert not same_weights(weights, same)
    assert not same_weights(weights, {"model": {"a": torch.arange(4.0)}})
    assert not same_weights(weights, {"model": {"a": torch.arange(4.0), "b": torch.ones(2, 2).double()}})
