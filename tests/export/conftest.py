"""A tiny data set and a checkpoint of a LeNet with random weights; no file and no network is needed."""

import functools
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.onnx._internal._lazy_import import onnxscript_apis

from foldserve.artifact.format import ModelMetadata
from foldserve.export.graph.build import BuiltModel
from foldserve.imaging import ImageSpec
from foldserve.training.checkpoint import Checkpoint, save_checkpoint
from foldserve.training.datasets import Dataset
from foldserve.training.datasets.registry import DATASETS
from foldserve.training.models import Normalized, create_model
from tests.support.taught import Taught, teach
from tests.support.torch_networks import build_network

LABELS = tuple(f"class {index}" for index in range(10))
SPEC = ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28)
MEAN, STD = (0.286,), (0.353,)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only slow tiny networks down, and change nothing else."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def parts_of_each_export_done_once() -> Iterator[None]:
    """Share between exports what a command does once: a third of the time of exporting a tiny network.

    PyTorch's exporter parses the source of all its ONNX functions for each export, and each export has all of
    PyTorch's objects searched for garbage.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        onnxscript_apis.get_torchlib_ops()
        gc.collect()
        gc.freeze()
        yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """300 images of noise and ramps, so that some pixels are 0 and some 255."""
    generator = np.random.default_rng(7)
    images = generator.integers(0, 256, (300, 1, 28, 28), dtype=np.uint8)
    images[::3, :, :, 14:] = 0
    images[1::3, :, :14] = 255
    return Dataset(
        name="tiny",
        labels=LABELS,
        image=SPEC,
        train_images=torch.from_numpy(images[:10]),
        train_labels=torch.arange(10),
        test_images=torch.from_numpy(images),
        # The tenth class is rare: it must be among the golden pairs all the same.
        test_labels=torch.tensor([9 if index == 299 else index % 9 for index in range(300)]),
    )


@pytest.fixture(autouse=True)
def registered(monkeypatch, dataset: Dataset) -> None:
    """`load_dataset("tiny")` finds it."""
    monkeypatch.setitem(DATASETS, "tiny", lambda *_: dataset)


@pytest.fixture(scope="session")
def checkpoint(dataset: Dataset) -> Checkpoint:
    """Random weights with what training brings about: statistics of real activations, logits of some 10."""
    torch.manual_seed(3)
    arguments = {"in_channels": 1, "class_count": 10, "height": 28, "width": 28}
    network = create_model("lenet", **arguments)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 1.0  # the statistics of the one batch below
    with torch.no_grad():
        Normalized(network, MEAN, STD).train()(dataset.test_images)
        network.get_parameter("classifier.5.weight").mul_(3)
    return Checkpoint(
        arch="lenet",
        arch_args=arguments,
        image=SPEC,
        mean=MEAN,
        std=STD,
        labels=LABELS,
        dataset="tiny",
        metrics={"validation_accuracy": 0.1},
        weights=network.state_dict(),
    )


@pytest.fixture(scope="session")
def built(checkpoint: Checkpoint) -> BuiltModel:
    """The checkpoint's file, not yet verified."""
    facts = ModelMetadata(checkpoint.labels, checkpoint.mean, checkpoint.std, checkpoint.image)
    return build_network(checkpoint.build().network, facts)


@pytest.fixture
def run_dir(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    save_checkpoint(folder / "best.pt", checkpoint)
    return folder


@pytest.fixture
def metadata() -> ModelMetadata:
    """Facts of a three-channel network of four classes on 12x12 images."""
    spec = ImageSpec(channel_order="RGB", height=12, width=12, resize_shorter_side=12)
    return ModelMetadata(("a", "b", "c", "d"), (0.2, 0.5, 0.7), (0.2, 0.3, 0.4), spec)


@pytest.fixture(scope="session")
def taught(checkpoint: Checkpoint) -> Taught:
    """The same weights with a data set on which they are always right."""
    return teach(checkpoint)
