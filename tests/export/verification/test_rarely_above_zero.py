"""Networks like DenseNet whose ReLUs pass little: sound, and exported, if need be with fewer folds."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from foldserve.artifact.format import read_artifact
from foldserve.export import pipeline
from foldserve.export.config import ExportConfig
from foldserve.export.errors import ParityError
from foldserve.export.graph.build import build_model
from foldserve.export.pipeline import export_version
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.support.architectures.signals import pictures
from tests.support.own_project import make_project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

K, SIDE = 10, 32
MEAN, STD = (0.5,) * 3, (0.25,) * 3
IMAGES = pictures(32, seed=8)[:, :, ::2, ::2].copy()
NETWORK = """
import torch
from torch import nn

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, stride=2)
        counts = range(32, 128, 16)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in counts)
        self.convs = nn.ModuleList(nn.Conv2d(count, 16, 1) for count in counts)
        self.norm = nn.BatchNorm2d(128)
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entered = make_project(tmp_path, monkeypatch)
    next(entered)
    (tmp_path / "dense.py").write_text(NETWORK)
    (tmp_path / "ten.txt").write_text("".join(f"{index}\n" for index in range(K)))
    yield
    next(entered, None)


def network_that_passes(beta: float) -> nn.Module:
    """Return a network with the statistics of the images, whose ReLUs see a mean of ``beta`` deviations."""
    namespace: dict[str, type[nn.Module]] = {}
    exec(NETWORK, namespace)
    torch.manual_seed(0)
    network = namespace["Dense"]()
    whole = Normalized(network, MEAN, STD)
    images = torch.from_numpy(IMAGES).float()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.bias.fill_(beta)
            norm.momentum = None  # the mean of the batches
        whole.train()(images)
        logits = whole.eval()(images)
        network.head.weight *= 5 / logits.std(0).mean()
        network.head.bias -= whole(images).mean(0)
    return network


def export(folder: Path, network: nn.Module) -> Path:
    torch.save(network.state_dict(), folder / "dense.pt")
    settings = {"labels": folder / "ten.txt", "mean": MEAN, "std": STD, "repository": folder / "models"}
    size = f"3x{SIDE}x{SIDE}"
    return export_version(
        ExportConfig(arch="dense:Dense", weights=folder / "dense.pt", input=size, **settings)
    )


def folded_count(version: Path) -> int:
    manifest = json.loads((version / "manifest.json").read_text())
    return [fold["action"] for fold in manifest["folding"]].count("folded")


@pytest.mark.parametrize(("beta", "is_folded"), [(0.5, True), (-2.5, False)])
def test_a_sound_network_is_published_however_little_its_relus_pass(
    beta: float, is_folded: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = network_that_passes(beta)
    version = export(tmp_path, network)
    assert (folded_count(version) == 8) == is_folded, "seven batch norms, and the scale of the pixels"
    assert ("perhaps by rounding alone: it is built again" in capsys.readouterr().out) != is_folded
    session = Session(read_artifact(version).model, device="cpu", intra_op_threads=1)
    (logits,) = session.run(["logits"], {"image": IMAGES})
    with torch.no_grad():
        whole = Normalized(copy.deepcopy(network), MEAN, STD).double()
        exact = whole(torch.from_numpy(IMAGES).double()).numpy()
    assert np.abs(logits - exact).max() < 1e-4
    # What is published is found again, though it is the second file that was built.
    assert export(tmp_path, network) == version


def test_a_wrong_file_is_refused_the_second_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The twin: a changed weight is no rounding."""

    def build_wrong(graph: object, metadata: object, **options: bool) -> object:
        weight = next(value for name, value in graph.graph.initializers.items() if "head.weight" in name)
        changed = weight.const_value.numpy().copy()
        changed.flat[0] += 0.01
        weight.const_value = ir.tensor(changed, name=weight.name)
        return build_model(graph, metadata, **options)

    monkeypatch.setattr(pipeline, "build_model", build_wrong)
    with pytest.raises(ParityError, match="the rejected file is in"):
        export(tmp_path, network_that_passes(0.5))
    assert "it is built again" in capsys.readouterr().out
    assert not list((tmp_path / "models").glob("*/[0-9]*"))
