"""Whoever starts the processes, each finds its place, or training is refused."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve.demo.children import ending_with_us
from foldserve.training.engine.launch import Place, find_place
from foldserve.training.errors import RunError
from tests.support.image_folders import write_classes

ROOT = Path(__file__).parents[3]
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}


def test_place_is_read_from_the_variables_of_torch() -> None:
    assert find_place(WHOLE) == Place(1, 2, 0, "10.0.0.1", 29500)
    assert find_place(WHOLE | {"LOCAL_RANK": "1"}) == Place(1, 2, 1, "10.0.0.1", 29500)


def test_place_is_read_from_slurm() -> None:
    assert find_place(SLURM) == Place(3, 4, 1, "node1", 29500, by_slurm=True)
    # The variables of torch, which a script may set inside a step, come first.
    assert find_place(SLURM | WHOLE) == Place(1, 2, 0, "10.0.0.1", 29500)


@pytest.mark.parametrize(
    "names",
    [
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    ],
    ids=["Open MPI", "MPICH"],
)
def test_place_is_read_from_mpi(names: tuple[str, str, str]) -> None:
    mpi = dict(zip(names, "431", strict=True))
    assert find_place(mpi | {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}) == Place(
        3, 4, 1, "node1", 29500
    )
    assert find_place(mpi | WHOLE) == Place(1, 2, 0, "10.0.0.1", 29500)
    assert find_place(mpi | {names[0]: "1"}) is None
    with pytest.raises(RunError, match="not 'MASTER_ADDR', 'MASTER_PORT'"):
        find_place(mpi)


@pytest.mark.parametrize(
    "environment",
    [{}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}, dict.fromkeys(WHOLE, "")],
    ids=["nothing", "Slurm's batch script", "one task", "empty variables"],
)
def test_process_that_nobody_started_with_others_trains_alone(environment: dict[str, str]) -> None:
    assert find_place(environment) is None


@pytest.mark.parametrize(
    "names", [names for size in (1, 2, 3) for names in itertools.combinations(WHOLE, size)]
)
def test_half_set_environment_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(RunError, match="set all four") as refused:
        find_place({name: WHOLE[name] for name in names})
    assert all(f"'{name}'" in str(refused.value) for name in WHOLE)


def test_slurm_without_an_address_is_refused() -> None:
    with pytest.raises(RunError, match="not 'MASTER_ADDR', 'MASTER_PORT'"):
        find_place({name: text for name, text in SLURM.items() if not name.startswith("MASTER")})


@pytest.mark.parametrize(
    ("name", "text"),
    [("RANK", "2"), ("RANK", "-1"), ("RANK", "x"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "99999")],
)
def test_wrong_numbers_are_refused(name: str, text: str) -> None:
    with pytest.raises(RunError, match=f"{name} in the environment is '{text}'"):
        find_place(WHOLE | {name: text})


def test_ipv6_address_becomes_a_url() -> None:
    assert find_place(WHOLE | {"MASTER_ADDR": "::1"}).url == "tcp://[::1]:29500"


def start(folder: Path, run_dir: Path, variables: dict[str, str]) -> subprocess.Popen[str]:
    words = ["train", "--dataset", str(folder), "--run-dir", str(run_dir), "--epochs=1", "--batch-size=16"]
    words += ["--device=cpu", "--threads=1", "--image-size=28"]
    environment = os.environ | {"XDG_CACHE_HOME": str(run_dir.parent / "cache"), "COLUMNS": "500"} | variables
    return subprocess.Popen(
        ending_with_us([sys.executable, "-m", "foldserve", *words]),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("by_slurm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_processes_that_no_torchrun_started_train_one_network(tmp_path: Path, by_slurm: bool) -> None:
    """Before, each trained alone, and both wrote into one folder."""
    folder = write_classes(tmp_path / "pictures", per_class=35)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    places = (
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01")
        if by_slurm
        else ({"WORLD_SIZE": "2", "RANK": rank} for rank in "01")
    )
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(folder, tmp_path / "run", place | meeting) for place in places]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 processes" in outputs[0][0]
    assert outputs[1][0] == ""  # the main process alone prints and writes
    assert (tmp_path / "run" / "best.pt").exists()


def test_half_set_environment_ends_the_command_with_one_line(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", per_class=35)
    process = start(folder, tmp_path / "run", {"WORLD_SIZE": "2"})
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.count("\n") == 1
    assert "the environment has 'WORLD_SIZE' but not 'RANK'" in error
    assert not (tmp_path / "run").exists()
