"""A project of the user's, as the current folder: its networks, weights and labels, as files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from foldserve.training.models import MODELS, create_model, register_custom_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest
    from torch import Tensor

LABELS = ("ant", "bee", "cicada", "dragonfly", "élan")

NETWORKS = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, class_count=5):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 16, class_count)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 4)
        return self.head(self.drop(x.flatten(1)))


THE_ONE = Net()

def net():
    return Net()

def sized(class_count):
    return Net(class_count)

def kept():
    return THE_ONE

class Tied(Net):
    def __init__(self):
        super().__init__()
        self.again = self.head

class Random(Net):
    def forward(self, x):
        return F.dropout(super().forward(x))

class Noisy(Net):
    def forward(self, x):
        return super().forward(x) + 0.01 * torch.randn(1)

class Branching(Net):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y

class Unsupported(Net):
    def forward(self, x):
        return super().forward(x) + torch.linalg.eigvals(x[:, :1, :5, :5]).real[:, 0]

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

class Mapping(Net):
    def forward(self, x):
        return super().forward(x).argmax(1)

class Map(Net):
    def forward(self, x):
        return self.conv(x)

class OwnStatistics(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

class Single(Net):
    def forward(self, x):
        return super().forward(x.float())

class Plain(Net):  # its filter is neither parameter nor buffer: no cast of the module reaches it
    def __init__(self):
        super().__init__()
        self.filter = torch.eye(3)[:, :, None, None]

    def forward(self, x):
        return super().forward(F.conv2d(x, self.filter))

class Float32Only(Net):
    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return super().forward(x)
"""


def make_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enter ``folder`` with networks.py, weights.pt and labels.txt in it; nothing of it stays behind."""
    (folder / "own_networks.py").write_text(NETWORKS)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(MODELS)
    torch.save(trained_weights(), folder / "weights.pt")
    yield
    for name in set(MODELS) - before:
        del MODELS[name]
    sys.modules.pop("own_networks", None)


def trained_weights(arch: str = "own_networks:net", seed: int = 5) -> dict[str, Tensor]:
    """Seeded weights with statistics that are not the identity, and logits that differ by image."""
    register_custom_model(arch)
    torch.manual_seed(seed)
    network = create_model(arch, class_count=5)
    with torch.no_grad():
        network.norm.running_mean.normal_(0, 0.5)
        network.norm.running_var.uniform_(0.3, 3.0)
        network.norm.weight.uniform_(-1.5, 1.5)
        network.norm.bias.normal_(0, 0.5)
        network.head.weight.mul_(10)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
