"""Runs the command of trainjob.yaml by the Kubeflow SDK's local process backend, in small.

The backend takes Python functions, no manifests: this one gives the trainer the manifest's own arguments,
with folders of this machine and pictures made here. It installs PyTorch and foldserve into an environment of
its own, as the backend does for each job (minutes). Run it where the package `kubeflow` is installed:
`PYTHON deploy/checks/trainjob.py`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # its stubs are no dependency
from kubeflow.trainer import CustomTrainer, LocalProcessBackendConfig, TrainerClient
from PIL import Image

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes" / "training" / "trainjob.yaml"
LIMIT_S = 900


def train(words: list[str]) -> None:
    """Train; the backend copies this function's text into a file of its own."""
    from foldserve.cli import main  # noqa: PLC0415  # in the job's environment

    if main(words) != 0:
        raise SystemExit(1)


def main() -> int:
    """Run the job and return 0 if it ended with a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="check-kubeflow-") as name:
        folder = Path(name)
        for index, label in enumerate(("bright", "dark")):
            (folder / "pictures" / label).mkdir(parents=True)
            for number in range(40):
                shade = 200 * (1 - index) + number % 20
                Image.new("L", (28, 28), shade).save(folder / "pictures" / label / f"{number}.png")
        module, _, *words = yaml.safe_load(MANIFEST.read_text())["spec"]["trainer"]["args"]
        assert module == "-m"
        instead = {
            "--dataset": folder / "pictures",
            "--run-dir": folder / "run",
            "--data-dir": folder / "pictures",
        }
        flags = [
            f"{flag}={instead[flag]}" if flag in instead else word
            for word in words
            for flag in [word.partition("=")[0]]
        ]
        client = TrainerClient(backend_config=LocalProcessBackendConfig())
        job = client.train(
            runtime="torch-distributed",
            trainer=CustomTrainer(
                func=train,
                func_args={"words": [*flags, "--epochs=2", "--batch-size=16", "--threads=1"]},
                packages_to_install=["torch==2.13.0", f"foldserve[train] @ file://{ROOT}"],
            ),
        )
        ended = client.wait_for_job_status(job, status={"Complete", "Failed"}, timeout=LIMIT_S)
        print("\n".join(list(client.get_job_logs(job))[-60:]))
        is_there = (folder / "run" / "best.pt").exists()
        print(f"{ended.status}; best.pt {'is' if is_there else 'is NOT'} there")
        return 0 if ended.status == "Complete" and is_there else 1


if __name__ == "__main__":
    sys.exit(main())
