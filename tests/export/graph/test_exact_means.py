"""Means over large maps are as exact as PyTorch's, and other means are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foldserve.artifact.format import ModelMetadata
from foldserve.export.errors import ParityError
from foldserve.export.graph import exact_means
from foldserve.export.graph.exact_means import write_exact_means
from foldserve.export.verification.parity import check_parity
from foldserve.export.verification.reference import TorchReference
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.support.torch_networks import build_network


def mean_of(sides: list[int | str], axes: list[int] | None, **attributes: Any) -> onnx.ModelProto:
    """A graph with one mean; without ``axes``, a GlobalAveragePool."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *sides])
    rank = 2 + len(sides) - (0 if attributes.get("keepdims", 1) else len(axes or ()))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    stored = [] if axes is None else [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
    kind, inputs = ("GlobalAveragePool", ["x"]) if axes is None else ("ReduceMean", ["x", "axes"])
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, ["y"], **attributes)], "graph", [image], [output], stored
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def rewritten(model_proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(model_proto)
    write_exact_means(model.graph)
    changed = ir.to_proto(model)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def run(model_proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return y


def operations(model_proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model_proto.graph.node]


@pytest.mark.parametrize(
    ("axes", "attributes"),
    [([2, 3], {"keepdims": 1}), ([3, 2], {"keepdims": 0}), ([-1, -2], {}), (None, {})],
)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_the_mean_stays_the_mean(
    axes: list[int] | None, attributes: dict[str, int], height: int, width: int, seed: int
) -> None:
    given_proto = mean_of([height, width], axes, **attributes)
    changed = rewritten(given_proto)
    assert (operations(changed) == operations(given_proto)) == (height * width < 128)
    x = np.random.default_rng(seed).normal(size=(2, 3, height, width)).astype(np.float32)
    before, after = run(given_proto, x), run(changed, x)
    assert before.shape == after.shape
    assert np.allclose(before, after, rtol=0, atol=3e-6)


@pytest.mark.parametrize("axes", [[2, 3], None])
def test_a_large_flat_map_has_the_mean_of_one_place(axes: list[int] | None) -> None:
    values = np.random.default_rng(0).uniform(0.1, 1, (8, 3, 1, 1)).astype(np.float32)
    x = np.broadcast_to(values, (8, 3, 112, 112)).copy()
    given_proto = mean_of([112, 112], axes)

    def error(model_proto: onnx.ModelProto) -> float:
        return float(np.abs(run(model_proto, x) / values.astype(np.float64) - 1).max())

    assert error(rewritten(given_proto)) < 1e-6
    assert error(given_proto) > 5e-6, "the twin, as it was given"


@pytest.mark.parametrize(
    ("sides", "axes"),
    [([40, 40], [1, 2]), ([40, 40], [3]), (["H", 40], [2, 3]), ([40], [2]), ([9, 9, 9], [2, 3])],
)
def test_other_means_are_left_alone(sides: list[int | str], axes: list[int]) -> None:
    given_proto = mean_of(sides, axes)
    assert operations(rewritten(given_proto)) == ["ReduceMean"]


def small_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)).eval()


def test_networks_are_exported_though_pictures_are_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is nearly exact there, and sets the scale for the file."""
    metadata = ModelMetadata(tuple("abc"), (0.5,), (0.25,), ImageSpec("L", 28, 28, 28))
    flat = np.stack([np.full((1, 28, 28), grey, np.uint8) for grey in (0, 40, 90, 128, 200, 255)])

    def refused_count() -> int:
        count = 0
        for seed in range(1040, 1060):
            network = small_network(seed)
            session = Session(build_network(network, metadata).content, device="cpu", intra_op_threads=1)
            try:
                check_parity(session, TorchReference(Normalized(network, (0.5,), (0.25,)).eval()), flat)
            except ParityError:
                count += 1
        return count

    assert refused_count() == 0
    monkeypatch.setattr(exact_means, "_FEWEST", 10**9)
    assert refused_count() > 0, "the twin, with one mean"
