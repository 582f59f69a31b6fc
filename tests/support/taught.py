"""A network with a data set that it answers all right: accuracy that is lost is lost by a precision."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from foldserve.artifact.format import Artifact, ModelMetadata, read_artifact
from foldserve.artifact.versions import list_versions
from foldserve.export.config import ExportConfig
from foldserve.export.pipeline import export_model
from foldserve.export.verification.reference import TorchReference
from foldserve.training.checkpoint import Checkpoint, save_checkpoint
from foldserve.training.datasets import Dataset
from foldserve.training.datasets.registry import DATASETS
from tests.support.torch_networks import build_network


@dataclass(frozen=True)
class Taught:
    """A checkpoint, the data set made for it, and its folded fp32 file."""

    checkpoint: Checkpoint
    dataset: Dataset
    content: bytes


def teach(checkpoint: Checkpoint, train_count: int = 400, test_count: int = 120) -> Taught:
    """Return smooth random images, all labelled with what the network answers."""
    checkpoint = dataclasses.replace(checkpoint, dataset="taught")
    generator = np.random.default_rng(11)
    count = train_count + test_count
    height, width = checkpoint.image.height, checkpoint.image.width
    shape = (count, checkpoint.image.channels, -(-height // 4), -(-width // 4))
    coarse = generator.integers(0, 256, shape, dtype=np.uint8)
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width]
    images = np.ascontiguousarray(fine)
    labels = torch.from_numpy(TorchReference(checkpoint.build()).logits(images).argmax(axis=1))
    dataset = Dataset(
        name="taught",
        labels=checkpoint.labels,
        image=checkpoint.image,
        train_images=torch.from_numpy(images[:train_count]),
        train_labels=labels[:train_count],
        test_images=torch.from_numpy(images[train_count:]),
        test_labels=labels[train_count:],
    )
    metadata = ModelMetadata(checkpoint.labels, checkpoint.mean, checkpoint.std, checkpoint.image)
    return Taught(checkpoint, dataset, build_network(checkpoint.build().network, metadata).content)


def export_taught(taught: Taught, folder: Path, patch: pytest.MonkeyPatch, **settings) -> Artifact:
    """Export into ``folder``/models as the command does, and read the version that was published."""
    patch.setitem(DATASETS, "taught", lambda *_: taught.dataset)
    run_dir = folder / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    save_checkpoint(run_dir / "best.pt", taught.checkpoint)
    config = ExportConfig(source=run_dir, repository=folder / "models", name="taught", **settings)
    assert export_model(config) == 0
    newest = max(list_versions(folder / "models/taught"))
    return read_artifact(folder / "models/taught" / str(newest))
