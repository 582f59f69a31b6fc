"""The faster weight gradient of small maps is the weight gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foldserve.training.models import convolution
from foldserve.training.models.convolution import Conv2d


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Maps [N, I, H, W], a weight [O, I, k, l], the output's gradient, and the padding."""
    side = st.integers(1, 5)
    height, width, images, inputs, outputs = (draw(side) for _ in range(5))
    padding = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    kernel = (
        draw(st.integers(1, height + 2 * padding[0])),
        draw(st.integers(1, width + 2 * padding[1])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    maps, weight = values(images, inputs, height, width), values(outputs, inputs, *kernel)
    sides = height + 2 * padding[0] - kernel[0] + 1, width + 2 * padding[1] - kernel[1] + 1
    return maps, weight, values(images, outputs, *sides), padding


@given(convolutions())
def test_gradients_are_those_of_torch(
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]],
) -> None:
    maps, weight, gradient, padding = given
    found = []
    for convolve in (
        lambda maps, weight: torch.nn.functional.conv2d(maps, weight, padding=padding),
        lambda maps, weight: convolution._Exchanged.apply(maps, weight, padding),
    ):
        leaves = maps.clone().requires_grad_(), weight.clone().requires_grad_()
        output = convolve(*leaves)
        output.backward(gradient)
        found.append((output.detach(), leaves[0].grad, leaves[1].grad))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the maps that the faster way was taken for."""
    shapes = []
    original = convolution._Exchanged.apply

    def apply(maps: torch.Tensor, *others: object) -> torch.Tensor:
        shapes.append(maps.shape)
        result: torch.Tensor = original(maps, *others)
        return result

    monkeypatch.setattr(convolution._Exchanged, "apply", apply)
    return shapes


def gradients(layer: nn.Conv2d, side: int, *, dtype: torch.dtype | None) -> list[torch.Tensor]:
    """Gradients of maps, weight and bias, in training."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(8, layer.in_channels, side, side, generator=generator).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        output = layer(maps)
    output.backward(torch.randn(output.shape, generator=generator).to(output.dtype))
    return [value.grad for value in (maps, *layer.parameters()) if value.grad is not None]


@pytest.mark.parametrize("bias", [False, True])
def test_bf16_training_on_small_maps_takes_it_and_is_near_float32(
    taken: list[torch.Size], *, bias: bool
) -> None:
    layer = Conv2d(32, 48, 3, padding=1, bias=bias)
    fast = gradients(layer, 5, dtype=torch.bfloat16)
    assert taken == [(8, 32, 5, 5)]
    exact = gradients(layer, 5, dtype=None)
    assert len(fast) == len(exact) == 2 + bias
    for one, other in zip(fast, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))
    assert len(taken) == 1


def test_all_else_is_as_in_torch(taken: list[torch.Size]) -> None:
    reference = nn.Conv2d(32, 48, 3, padding=1)
    layer = Conv2d(32, 48, 3, padding=1)
    layer.load_state_dict(reference.state_dict())
    for side, dtype in ((6, torch.bfloat16), (5, torch.float16), (5, None)):  # a large map; other formats
        for one, other in zip(
            gradients(layer, side, dtype=dtype), gradients(reference, side, dtype=dtype), strict=True
        ):
            assert torch.equal(one, other)
    maps = torch.randn(2, 32, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.eval()(maps), reference.eval()(maps))
        layer.train().requires_grad_(False)
        assert torch.equal(layer(maps), reference(maps))
    for other_layer in (
        Conv2d(32, 48, 3, stride=2),
        Conv2d(32, 48, 3, padding=1, groups=2),
        Conv2d(32, 48, 3, padding=1, padding_mode="reflect"),
        Conv2d(32, 48, 3, padding="same"),
        Conv2d(8, 8, 3),
    ):
        gradients(other_layer, 5, dtype=torch.bfloat16)
    assert not taken
