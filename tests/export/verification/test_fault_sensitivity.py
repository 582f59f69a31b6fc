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
    found = smallest_found(case, lambda size: weights_off(case.network, "0", size))
    for each in found:
        assert each.startswith("changes of ")
    _, now, with_few = (float(each.rpartition(" ")[2]) for each in found)
    assert 0 < now < 1e-4
    assert now / 4 <= with_few <= 4 * now  # 16 images find as small a fault as 32
