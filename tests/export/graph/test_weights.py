"""Weights that are changed in float64: the same in temporary files as in memory."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from foldserve.export.graph import weights
from foldserve.export.graph.weights import Float64Initializers
from tests.support.torch_networks import Classifier, build_network, randomised

if TYPE_CHECKING:
    from foldserve.artifact.format import ModelMetadata


@pytest.fixture
def network() -> nn.Module:
    """Weights that take part in several folds: of a chain of batch norms, and of the input's scaling."""
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
    )
    return randomised(Classifier(body, 5))


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every changed weight wait on disk; returns the sizes of those that did."""
    sizes: list[int] = []
    from_disk = weights._from_disk

    def noted(array: np.ndarray) -> np.ndarray:
        sizes.append(array.nbytes)
        return from_disk(array)

    monkeypatch.setattr(weights, "_HELD_BYTES", 0)
    monkeypatch.setattr(weights, "_from_disk", noted)
    return sizes


def test_the_file_is_the_same_by_way_of_the_disk(
    network: nn.Module, metadata: ModelMetadata, request: pytest.FixtureRequest
) -> None:
    in_memory = build_network(network, metadata).content
    sizes = request.getfixturevalue("on_disk")
    assert build_network(network, metadata).content == in_memory
    assert len(sizes) > 5


def test_the_file_is_the_same_if_the_disk_is_full(
    network: nn.Module, metadata: ModelMetadata, on_disk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build_network(network, metadata).content

    def fail(**_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert build_network(network, metadata).content == expected
    assert on_disk


def test_only_what_is_too_much_waits_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_HELD_BYTES", 3 * 80)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    held = Float64Initializers(graph)
    values = [held.add(f"weight {index}", np.full(10, float(index))) for index in range(5)]
    held.write(values[0], np.full(10, 9.0))  # in place of what it was
    arrays = [held.read(value) for value in values]
    assert [array[0] for array in arrays] == [9.0, 1.0, 2.0, 3.0, 4.0]
    assert [array.base is not None for array in arrays] == [False, False, False, True, True]
    held.store()
    assert [float(value.const_value.numpy()[0]) for value in values] == [9.0, 1.0, 2.0, 3.0, 4.0]
