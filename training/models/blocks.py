"""Defines the building blocks of all networks here: convolution, batch norm, activation; rows of them.

A convolution with ``in_channels`` x ``out_channels`` x ``kernel_size``^2 weights maps a side of n pixels to
``(n + 2 * padding - kernel_size) // stride + 1``. Batch norm standardises each channel (by the mean and
variance of the batch in training, by their running averages in evaluation), then scales by gamma and shifts
by beta. The shift makes a bias of the convolution redundant, so there is one only without batch norm.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from torch import nn

from foldserve.training.errors import ModelError
from foldserve.training.models.convolution import Conv2d

if TYPE_CHECKING:
    from torch import Tensor

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class ConvBlock(nn.Sequential):
    """Conv2d, BatchNorm2d if ``batch_norm``, activation; the children ``conv``, ``norm``, ``activation``.

    ``activation`` is None in a residual branch, whose output is activated after it is added to the shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        batch_norm: bool = True,
        activation: str | None = "relu",
    ) -> None:
        super().__init__()
        self.conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            bias=not batch_norm,
        )
        if batch_norm:
            self.norm = nn.BatchNorm2d(out_channels)
        if activation is not None:
            self.activation = create_activation(activation)


class ConvLayers(nn.Sequential):
    """A row of ConvBlocks and poolings, which in training pools maps before it activates them.

    ReLU and max pooling can trade places: values and gradients stay the same, bit by bit, and ReLU has a
    quarter of the values to treat. A step of LeNet takes a tenth less CPU time. In evaluation the layers are
    in their order, because ONNX Runtime computes a ReLU together with the convolution before it.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps of the last layer."""
        waiting: nn.Module | None = None
        for layer, following in zip_longest(self, list(self)[1:]):
            layers = [layer] if waiting is None else [layer, waiting]
            waiting = None
            if self.training and isinstance(following, nn.MaxPool2d) and isinstance(layer, ConvBlock):
                *layers, last = layer
                # Of others, such as sigmoid, rounding makes equals: their gradient may go to another value.
                if isinstance(last, nn.ReLU):
                    waiting = last
                else:
                    layers.append(last)
            for each in layers:
                maps = each(maps)
        return maps


def create_activation(name: str) -> nn.Module:
    """Return a new activation layer.

    Raises:
        ModelError: ``name`` is not an activation.
    """
    if name not in _ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not known; expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def check_dropout(dropout: float) -> None:
    """Check a dropout probability.

    Raises:
        ModelError: ``dropout`` is not at least 0 and below 1.
    """
    if not 0 <= dropout < 1:
        raise ModelError(f"dropout is {dropout}; expected a probability from 0 to below 1")


def scaled_channels(channels: int, width_factor: float) -> int:
    """Return ``channels`` times ``width_factor``, rounded, at least 1.

    Raises:
        ModelError: ``width_factor`` is not above 0.
    """
    if not 0 < width_factor < float("inf"):
        raise ModelError(f"the width factor is {width_factor}; expected a number above 0")
    return max(1, round(channels * width_factor))


def convolved_side(side: int, *, kernel_size: int, stride: int = 1, padding: int = 0) -> int:
    """Return the side in pixels of a map after a convolution; below 1 if the kernel does not fit."""
    return (side + 2 * padding - kernel_size) // stride + 1
