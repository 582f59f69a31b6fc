"""Finds out whether a launcher started this process as one of several, and which one it is.

torchrun, Kubeflow and Ray Train name it in RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as PyTorch's
"env://" initialisation reads them (https://docs.pytorch.org/docs/stable/distributed.html). Slurm's srun and
MPI's mpirun have variables of their own, and leave the address to the job's script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.text import join_names, quote
from foldserve.training.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Number of processes, rank and rank on the machine: of Slurm, Open MPI, MPICH and Intel MPI. Slurm's number
# is only set in a step that srun started; the batch script itself has SLURM_NTASKS too, and trains nothing.
_SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
_LAUNCHERS = (
    _SLURM,
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
)


@dataclass(frozen=True)
class Place:
    """This process is number ``rank`` of ``world_size``, and ``local_rank`` of those on its machine."""

    rank: int
    world_size: int
    local_rank: int
    master_address: str
    master_port: int
    by_slurm: bool = False

    @property
    def url(self) -> str:
        """Where the processes meet, for torch.distributed."""
        host = f"[{self.master_address}]" if ":" in self.master_address else self.master_address
        return f"tcp://{host}:{self.master_port}"


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Return the place that ``environment`` names; None if this process trains alone.

    Raises:
        RunError: some of the variables are missing or wrong: training alone would not be what was meant.
    """
    given = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    local_rank = "LOCAL_RANK"
    launcher = next((names for names in _LAUNCHERS if names[0] in environment), None)
    if launcher is not None and "RANK" not in given and "WORLD_SIZE" not in given:
        size, rank, local_rank = launcher
        if environment[size] == "1":
            return None
        given |= {"RANK": environment.get(rank, ""), "WORLD_SIZE": environment[size]}
        own_names = {"RANK": rank, "WORLD_SIZE": size}
    else:
        launcher, own_names = None, {}
    if not given:
        return None
    if missing := [name for name in _VARIABLES if name not in given]:
        raise RunError(
            f"the environment has {join_names(own_names.get(name, name) for name in given)} but not "
            f"{join_names(missing)}, so it is not clear "
            "whether this process trains with others: set all four (torchrun does), or none to train alone"
        )
    world_size = _number("WORLD_SIZE", given["WORLD_SIZE"], 1, 2**31 - 1)
    return Place(
        rank=_number("RANK", given["RANK"], 0, world_size - 1),
        world_size=world_size,
        local_rank=_number(local_rank, environment.get(local_rank, "0"), 0, world_size - 1),
        master_address=given["MASTER_ADDR"],
        master_port=_number("MASTER_PORT", given["MASTER_PORT"], 1, 65535),
        by_slurm=launcher is _SLURM,
    )


def _number(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise RunError(
            f"{name} in the environment is {quote(text)}; expected a number from {least} to {most}"
        )
    return int(text)
