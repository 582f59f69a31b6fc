"""Networks that normalise by the image's own statistics, really trained, are exported."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foldserve.export.config import ExportConfig
from foldserve.export.errors import ParityError
from foldserve.export.graph import fold_pass
from foldserve.export.pipeline import export_model
from tests.export.sources import test_onnx_file as files
from tests.support.own_project import make_project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

K, SIDE = 5, 24
NETWORKS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        conv = lambda: nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv(), norm(channels), nn.ReLU(), conv(), norm(channels))

    def forward(self, x):
        return torch.relu(x + self.body(x))

def make(norm):
    stem = (nn.Conv2d(3, 16, 3, 2, 1, bias=False), norm(16), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return nn.Sequential(*stem, Block(16, norm), Block(16, norm), *head)

def group():
    return make(lambda channels: nn.GroupNorm(4, channels))

def layer():
    return make(lambda channels: nn.GroupNorm(1, channels))

def instance():
    return make(lambda channels: nn.InstanceNorm2d(channels, affine=True))
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entered = make_project(tmp_path, monkeypatch)
    next(entered)
    (tmp_path / "own_norms.py").write_text(NETWORKS)
    (tmp_path / "labels.txt").write_text("\n".join("abcde") + "\n")
    yield
    next(entered, None)
    sys.modules.pop("own_norms", None)


def gratings(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of stripes, one direction a class, some of them nearly flat; and their classes."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, K, count)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    angles = classes[:, None, None] * np.pi / K
    waves = np.sin(
        (rows * np.sin(angles) + columns * np.cos(angles)) * random.uniform(0.6, 1.2, (count, 1, 1))
        + random.uniform(0, 6, (count, 1, 1))
    )
    contrast = random.uniform(2, 100, (count, 3, 1, 1))
    images = 128 + contrast * waves[:, None] + random.normal(0, 4, (count, 3, SIDE, SIDE))
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), torch.from_numpy(classes)


def trained(network: nn.Module) -> float:
    """Train ``network`` in place; return its accuracy on images that it has not seen."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (files.MEAN, files.STD))
    images, classes = gratings(1024, 1)
    network.train()
    for _ in range(6):
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(network((images[rows] / 255 - mean) / std), classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    images, classes = gratings(256, 2)
    with torch.no_grad():
        return float((network.eval()((images / 255 - mean) / std).argmax(1) == classes).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["group", "layer", "instance"])
def test_trained_network_with_own_statistics_is_exported(kind, tmp_path, monkeypatch):
    own_norms = importlib.import_module("own_norms")

    network = getattr(own_norms, kind)()
    assert trained(network) > 0.9
    torch.save(network.state_dict(), tmp_path / "trained.pt")
    given = ExportConfig(
        arch=f"own_norms:{kind}",
        weights=tmp_path / "trained.pt",
        input=f"3x{SIDE}x{SIDE}",
        labels=tmp_path / "labels.txt",
        mean=files.MEAN,
        std=files.STD,
        repository=tmp_path / "models",
        name=kind,
    )
    assert export_model(given) == 0
    # The twin: the input's scaling is off by a thousandth.
    scaling = fold_pass.FoldPass.absorb_scale
    monkeypatch.setattr(
        fold_pass.FoldPass,
        "absorb_scale",
        lambda self, value, scale: scaling(self, value, scale * np.array([1.001, 1, 1])),
    )
    with pytest.raises(ParityError, match="nothing was published"):
        export_model(given)
