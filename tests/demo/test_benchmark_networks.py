"""The serving benchmark also measures the very network that the demo trains and exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from benchmarks.serving.contestants import Contestant, launch
from benchmarks.serving.networks import lenet, trained_lenet
from benchmarks.serving.rows import NETWORKS, ROWS
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.verified_model import open_verified
from foldserve.training.config import TrainConfig
from foldserve.training.models import create_model

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def parameter_count(model_file: Path) -> int:
    """Weights and biases of the layers; the constants of normalisation have but a few numbers."""
    sizes = [len(tensor.raw_data) // 4 for tensor in onnx.load(model_file).graph.initializer]
    return sum(size for size in sizes if size >= 10)


def test_the_network_of_the_demo_is_measured_as_it_is_served(tmp_path: Path) -> None:
    network = trained_lenet(tmp_path, None)
    arch = TrainConfig().arch
    made = create_model(arch, in_channels=1, class_count=10, height=28, width=28, batch_norm=False)
    assert parameter_count(network.model_file) == sum(each.numel() for each in made.parameters())
    operations = {node.op_type for node in onnx.load(network.model_file).graph.node}
    assert "Conv" in operations
    assert "BatchNormalization" not in operations
    open_verified(network.model_file.parent, ModelSettings(device="cpu"))
    assert "trained" in {row.group for row in ROWS}
    assert NETWORKS["trained"] == network.name


def test_a_repository_written_by_the_demo_is_used(tmp_path: Path) -> None:
    left = lenet(tmp_path)  # stands for it: a model called lenet
    found = trained_lenet(tmp_path / "workspace", left.repository)
    assert (found.repository, found.model_file, found.name) == (left.repository, left.model_file, "lenet")
    assert not (tmp_path / "workspace").exists()


def test_small_networks_run_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.contestants.usable_cpus", lambda: 4)
    small = lenet(tmp_path)
    started = launch(Contestant("bare_aio"), small, port_file=tmp_path / "port", free_port=0)
    assert started.command[-1] == "1"
