"""Runs `foldserve demo`: train, export, serve, classify, compare the answers of all three."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from rich.console import Console

from foldserve.artifact.format import OUTPUTS, ModelMetadata, read_artifact
from foldserve.artifact.versions import list_versions
from foldserve.demo.proof import answer_all, compare_all
from foldserve.demo.server_process import running_server
from foldserve.demo.terminal import print_proof, print_step, print_where
from foldserve.export.config import ExportConfig
from foldserve.export.pipeline import export_version
from foldserve.export.publish import check_writable
from foldserve.export.verification.reference import TorchReference
from foldserve.runtime.runner import ModelRunner
from foldserve.runtime.session import Session
from foldserve.serving.client.sync_client import Client
from foldserve.serving.commands.classify import classify
from foldserve.serving.commands.command_configs import ClassifyConfig
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import load_dataset
from foldserve.training.run.run_folder import REPORT_FOLDER
from foldserve.training.run.samples import SAMPLES_FOLDER, write_samples
from foldserve.training.run.train import train

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.demo.config import DemoConfig
    from foldserve.demo.proof import Comparison
    from foldserve.training.datasets import Dataset

MODEL = "lenet"


def run_demo(config: DemoConfig) -> int:
    """Run all steps and return 0, or 1 if the served answers differ from those of the trained network.

    Raises:
        TrainingError, ExportError, ServingError: a step failed; the message says which and what to do.
    """
    console = Console(highlight=False)
    log = config.run_dir / "server.log"
    model_folder = config.repository / MODEL
    if not (model_folder.is_dir() and list_versions(model_folder)):  # fail before training
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
    """Compare the answers of PyTorch, ONNX Runtime in this process and the server on all test images."""
    images, labels = dataset.test_images.numpy(), dataset.test_labels.numpy()
    with Client(address) as client:
        served = answer_all(
            lambda batch: itemgetter(*OUTPUTS)(client.infer(version.parent.name, batch, version.name)), images
        )
    return compare_all(
        TorchReference(load_checkpoint(run_dir).build()).logits(images),
        [
            ("ONNX Runtime (in process)", *answer_all(ModelRunner(session), images)),
            ("served (over gRPC)", *served),
        ],
        labels,
        ModelMetadata.from_props(session.props).temperature,
    )


def _train_config(config: DemoConfig) -> TrainConfig:
    chosen = {} if config.epochs is None else {"epochs": config.epochs}
    return TrainConfig.model_validate(
        {"run_dir": config.run_dir, "device": config.device, "data_dir": config.data_dir, **chosen}
    )


def _export(config: DemoConfig) -> Path:
    """Export, unless a version is this very model already, and return the version's folder."""
    return export_version(
        ExportConfig(
            source=config.run_dir, repository=config.repository, name=MODEL, data_dir=config.data_dir
        )
    )
