"""Trains as a TrainJob of Kubeflow's SDK, in processes of this machine, without a cluster.

`python examples/kubeflow_train.py --packages torch==2.13.0 'foldserve[train] @ file:///PATH/foldserve.whl' --
--arch lenet` (needs `pip install kubeflow`). What follows `--` goes to `foldserve train`; relative folders
are taken from here. The SDK's local process backend makes a virtual environment for the job, with these
packages, and runs torchrun in it. It knows one node; torchrun starts --processes on it, which train together.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kubeflow.trainer import CustomTrainer, LocalProcessBackendConfig, TrainerClient


# The SDK copies the text of this function into a file of its own and calls it there, so it needs nothing from
# around it, its annotations neither. The local backend passes a dictionary, the cluster's its items by name.
def train_node(settings: dict | None = None, **named) -> None:  # type: ignore[type-arg,no-untyped-def]
    """Train as one of the processes that torchrun starts."""
    import os  # noqa: PLC0415

    from foldserve.cli import main  # noqa: PLC0415

    settings = settings or named
    os.chdir(settings["folder"])
    if main(["train", *settings["flags"]]) != 0:
        raise SystemExit("foldserve train failed; the log above says why")


def main() -> int:
    """Start the job, show its log, and return 0 if it completed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--packages", nargs="+", default=[], help="requirements, as pip takes them")
    parser.add_argument("flags", nargs="*", help="flags of `foldserve train`")
    arguments = parser.parse_args()
    # The backend gives the job these variables and no others: by default none, so neither PATH nor HOME.
    # torchrun reads PET_...; on a cluster the runtime sets them from numNodes and numProcPerNode.
    environment = os.environ | {"PET_NPROC_PER_NODE": str(arguments.processes), "PET_STANDALONE": "1"}
    client = TrainerClient(backend_config=LocalProcessBackendConfig())
    name = client.train(
        runtime="torch-distributed",
        trainer=CustomTrainer(
            func=train_node,
            func_args={"flags": arguments.flags, "folder": str(Path.cwd())},
            packages_to_install=arguments.packages,
            env=environment,
        ),
    )
    for _ in client.get_job_logs(name, follow=True):  # prints the log, and ends with the job
        pass
    status = client.get_job(name).status
    print(f"\nTrainJob {name}: {status}")
    return 0 if status == "Complete" else 1


if __name__ == "__main__":
    sys.exit(main())
