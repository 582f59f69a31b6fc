"""The arithmetic against PyTorch's own layers, over shapes, groups, strides and dilations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from foldserve.export.graph.fold_bn import ChannelAffine, batch_norm_affine, fold_after, fold_before
from tests.support.torch_networks import randomised

# Everything is float64 here, so nothing but rounding in the last places may differ.
TOLERANCE = 1e-10


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 2, 3]))
    transposed = draw(st.booleans())
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = kind(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 3, (1, 3)])),
        stride=draw(st.sampled_from([1, 2])),
        padding=draw(st.sampled_from([0, 1])) if not transposed else 0,
        dilation=draw(st.sampled_from([1, 2])),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return layer.double()


def norm_for(channels: int, *, affine: bool = True) -> nn.BatchNorm2d:
    return randomised(nn.BatchNorm2d(channels, affine=affine).double())


def affine_of(norm: nn.BatchNorm2d) -> ChannelAffine:
    count = norm.num_features
    return batch_norm_affine(
        gamma=norm.weight.detach().numpy() if norm.affine else np.ones(count),
        beta=norm.bias.detach().numpy() if norm.affine else np.zeros(count),
        mean=norm.running_mean.numpy(),
        variance=norm.running_var.numpy(),
        epsilon=norm.eps,
    )


def arrays_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[np.ndarray, np.ndarray]:
    bias = np.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().numpy()
    return layer.weight.detach().numpy(), bias


def run(layer, weight: np.ndarray, bias: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    call = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
    return call(
        x,
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def layout_of(layer) -> str:
    return "conv_transpose" if isinstance(layer, nn.ConvTranspose2d) else "conv"


@given(convolutions(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_folding_after_equals_layer_then_batch_norm(layer, affine):
    norm = norm_for(layer.out_channels, affine=affine)
    x = torch.randn(2, layer.in_channels, 7, 7, dtype=torch.float64)
    weight, bias = fold_after(
        *arrays_of(layer), affine_of(norm), layout=layout_of(layer), groups=layer.groups
    )
    with torch.no_grad():
        assert (run(layer, weight, bias, x) - norm(layer(x))).abs().max() < TOLERANCE


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_folding_before_equals_batch_norm_then_unpadded_layer(layer):
    layer.padding = (0, 0)
    if layout_of(layer) == "conv_transpose":
        return  # its borders see fewer taps: only maps without shift, tested below
    norm = norm_for(layer.in_channels)
    x = torch.randn(2, layer.in_channels, 7, 7, dtype=torch.float64)
    weight, bias = fold_before(*arrays_of(layer), affine_of(norm), layout="conv", groups=layer.groups)
    with torch.no_grad():
        assert (run(layer, weight, bias, x) - layer(norm(x))).abs().max() < TOLERANCE


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_a_scale_alone_folds_before_any_layer_padding_included(layer):
    scale = np.linspace(-1.5, 2.0, layer.in_channels)
    affine = ChannelAffine(scale, np.zeros_like(scale))
    x = torch.randn(2, layer.in_channels, 7, 7, dtype=torch.float64)
    weight, bias = fold_before(*arrays_of(layer), affine, layout=layout_of(layer), groups=layer.groups)
    scaled = x * torch.from_numpy(scale).reshape(1, -1, 1, 1)
    with torch.no_grad():
        assert affine.keeps_zero
        assert (run(layer, weight, bias, x) - layer(scaled)).abs().max() < TOLERANCE


def test_a_shift_folded_before_a_padded_layer_is_wrong_at_the_border_only():
    """Why the pass must decline it: the twin of the two tests above."""
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    norm = norm_for(2)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    weight, bias = fold_before(*arrays_of(layer), affine_of(norm), layout="conv")
    with torch.no_grad():
        error = (run(layer, weight, bias, x) - layer(norm(x))).abs().amax((0, 1))
    assert error[1:-1, 1:-1].max() < TOLERANCE
    assert error[0].min() > 1e-3


@pytest.mark.parametrize("layout", ["gemm", "gemm_transposed"])
def test_linear_layers_fold_on_either_side(layout):
    generator = np.random.default_rng(1)
    weight, bias = generator.normal(size=(5, 3)), generator.normal(size=3)  # [in, out]
    stored = weight if layout == "gemm" else np.ascontiguousarray(weight.T)
    x = generator.normal(size=(4, 5))
    before = ChannelAffine(generator.normal(size=5), generator.normal(size=5))
    after = ChannelAffine(generator.normal(size=3), generator.normal(size=3))
    folded = fold_after(*fold_before(stored, bias, before, layout=layout), after, layout=layout)
    actual = x @ (folded[0] if layout == "gemm" else folded[0].T) + folded[1]
    expected = after.scale * ((before.scale * x + before.shift) @ weight + bias) + after.shift
    assert np.abs(actual - expected).max() < TOLERANCE


def test_two_maps_in_a_row_are_one():
    first = ChannelAffine(np.array([2.0, -1.0]), np.array([0.5, 3.0]))
    second = ChannelAffine(np.array([-3.0, 0.25]), np.array([1.0, -1.0]))
    both = first.then(second)
    x = np.array([[1.5, -2.0]])
    expected = second.scale * (first.scale * x + first.shift) + second.shift
    assert np.abs(both.scale * x + both.shift - expected).max() < TOLERANCE


def test_input_arrays_are_not_changed():
    weight, bias = np.ones((4, 2, 3, 3)), np.ones(4)
    affine = ChannelAffine(np.full(4, 2.0), np.full(4, 3.0))
    fold_after(weight, bias, affine, layout="conv")
    fold_before(weight, bias, ChannelAffine(np.full(2, 2.0), np.full(2, 3.0)), layout="conv")
    assert (weight == 1).all()
    assert (bias == 1).all()
