"""The search for the smallest fault that is still found runs through the whole comparison."""

import pytest
import torch
from torch import nn

from benchmarks import fault_sensitivity
from benchmarks.fault_sensitivity import Case, smallest_found, weights_off, with_statistics
from foldserve.export.sources.verification_images import synthetic_images
from foldserve.imaging import ImageSpec


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    images = synthetic_images(ImageSpec("L", 8, 8, 8), 32).images
    return Case("tiny", with_statistics(nn.Sequential(*layers), images), images, "0", "0", "1")


def test_smallest_fault_is_a_small_one(case, monkeypatch):
    monkeypatch.setattr(fault_sensitivity, "_HALVINGS", 24)
    before, now = smallest_found(case, lambda size: weights_off(case.network, "0", size))
    for found in (before, now):
        assert found.startswith("changes of ")
        assert 0 < float(found.rpartition(" ")[2]) < 1e-4
