"""`foldserve demo`: train, export, serve, classify, and prove that what was trained is what is served."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from rich.console import Console

from demo.proof import answer_all, compare_all
from demo.server_process import running_server
from demo.terminal import print_proof, print_step, print_where
from export.config import ExportConfig
from export.pipeline import export_model
from export.publish import check_writable
from export.reference import TorchReference
from serving.artifact import list_versions, read_artifact
from serving.classify_command import classify
from serving.client import Client
from serving.config import ClassifyConfig
from serving.responses import OUTPUTS
from serving.runner import Runner
from serving.session import Session
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.datasets import load_dataset
from training.run import train
from training.run_folder import REPORT_FOLDER
from training.samples import SAMPLES_FOLDER, write_samples

if TYPE_CHECKING:
    from pathlib import Path

    from demo.config import DemoConfig
    from demo.proof import Comparison
    from training.datasets import Dataset

MODEL = "lenet"


def run_demo(config: DemoConfig) -> int:
    """Do all of it and return 0; 1 where the served answers are not those of the trained network.

    Raises:
        TrainingError, ExportError, ServingError: a step failed; the message says which and what to do.
    """
    console = Console(highlight=False)
    log = config.run_dir / "server.log"
    model_folder = config.repository / MODEL
    if not (model_folder.is_dir() and list_versions(model_folder)):  # else there may be nothing to export
        check_writable(model_folder)
    print_step(console, 1, "Train")
    train(_train_config(config))
    print_step(console, 2, "Export")
    version = _export(config)
    dataset = load_dataset("fashion-mnist", config.data_dir)
    pictures = write_samples(config.run_dir / REPORT_FOLDER / SAMPLES_FOLDER, dataset)
    print_step(console, 3, "Serve, and classify a test picture of each class")
    with running_server(config.repository, device=config.device, log=log) as address:
        classify(
            ClassifyConfig(images=pictures, model=MODEL, model_version=version.name, server=address, top_k=2)
        )
        print_step(console, 4, "Prove")
        session = Session(read_artifact(version).model, device=config.device)
        rows = prove(config.run_dir, version, address, dataset, session)
    print_proof(console, rows, session.provider)
    print_where(console, config.run_dir, version, log)
    return 0 if all(row.passed for row in rows) else 1


def prove(run_dir: Path, version: Path, address: str, dataset: Dataset, session: Session) -> list[Comparison]:
    """Answer all test images with PyTorch, ONNX Runtime here and the server, and compare."""
    images, labels = dataset.test_images.numpy(), dataset.test_labels.numpy()
    with Client(address) as client:
        served = answer_all(
            lambda batch: itemgetter(*OUTPUTS)(client.infer(version.parent.name, batch, version.name)), images
        )
    return compare_all(
        TorchReference(load_checkpoint(run_dir).build()).logits(images),
        [
            ("ONNX Runtime (in process)", *answer_all(Runner(session), images)),
            ("served (over gRPC)", *served),
        ],
        labels,
    )


def _train_config(config: DemoConfig) -> TrainConfig:
    chosen = {} if config.epochs is None else {"epochs": config.epochs}
    return TrainConfig.model_validate(
        {"run_dir": config.run_dir, "device": config.device, "data_dir": config.data_dir, **chosen}
    )


def _export(config: DemoConfig) -> Path:
    """Export, unless the newest version is already this very model, and return its folder."""
    export_model(
        ExportConfig(
            source=config.run_dir,
            repository=config.repository,
            name=MODEL,
            data_dir=config.data_dir,
            skip_same=True,
        )
    )
    model_folder = config.repository / MODEL
    return model_folder / str(list_versions(model_folder)[-1])
