"""Weights of a large network that may leave memory, and come back as they were."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from foldserve.export.sources.mapped_weights import MappedWeights

MIB = 1024 * 1024


class Tied(nn.Module):
    """Two linear layers of one weight, a large buffer, small tensors, and a view of a larger tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1024, 1024), nn.Linear(1024, 1024)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.randn(1024, 512))
        self.register_buffer("narrow", torch.randn(1024, 512, dtype=torch.float32).half())
        self.view = nn.Parameter(torch.randn(2048, 512)[:1024])
        self.crosswise = nn.Parameter(torch.randn(512, 1024).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = self.narrow.float() + self.view + self.crosswise
        return self.second(torch.relu(self.first(x))) @ (self.table + halves)


@pytest.fixture
def module() -> Tied:
    torch.manual_seed(0)
    return Tied().eval()


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def test_weights_are_the_same_before_and_after_a_release(module: Tied) -> None:
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(3, 1024)
    answer = module(x)
    moved = module.first.weight
    weights = MappedWeights(module, large_bytes=1)
    assert module.first.weight is module.second.weight is moved
    for _ in range(2):
        weights.release()
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
        assert torch.equal(module(x), answer)


def test_a_change_survives_a_release(module: Tied) -> None:
    weights = MappedWeights(module, large_bytes=1)
    with torch.no_grad():
        module.first.weight[5] = 7.0
    weights.release()
    assert torch.all(module.first.weight[5] == 7.0)


def test_weights_outlive_what_moved_them(module: Tied) -> None:
    expected = module.table.clone()
    MappedWeights(module, large_bytes=1).release()
    assert torch.equal(module.table, expected)


def test_small_networks_stay_where_they_are(module: Tied) -> None:
    before = module.first.weight.data_ptr()
    MappedWeights(module).release()
    assert module.first.weight.data_ptr() == before


def test_weights_stay_in_memory_if_no_file_can_be_written(
    module: Tied, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    before = module.first.weight.data_ptr()
    MappedWeights(module, large_bytes=1).release()
    assert module.first.weight.data_ptr() == before
    assert module(torch.randn(1, 1024)).isfinite().all()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux reports it")
def test_released_weights_take_no_memory() -> None:
    module = nn.Linear(8192, 4096)  # 128 MiB
    weights = MappedWeights(module, large_bytes=1)
    assert module.weight.sum().isfinite()
    before = resident_mib()
    weights.release()
    assert before - resident_mib() > 64
