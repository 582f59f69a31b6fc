"""Defines AlexNet (Krizhevsky et al. 2012), single-tower as in "One weird trick" (Krizhevsky 2014).

Five convolutions, some of them followed by overlapping 3x3 max pooling with stride 2, and three linear
layers, with dropout before the first two. Batch norm replaces local response normalisation.

There are two layouts, chosen by the shorter side of the image. The paper's is used from 65 pixels on:

    layer                              output at 3x224x224      weights
    conv1  11x11, stride 4, padding 2    64 x  55 x  55          23,232
    pool1  3x3, stride 2                 64 x  27 x  27
    conv2  5x5, padding 2               192 x  27 x  27         307,200
    pool2  3x3, stride 2                192 x  13 x  13
    conv3  3x3, padding 1               384 x  13 x  13         663,552
    conv4  3x3, padding 1               256 x  13 x  13         884,736
    conv5  3x3, padding 1               256 x  13 x  13         589,824
    pool5  3x3, stride 2                256 x   6 x   6
    fc6, fc7, fc8                      4096, 4096, K       37,748,736 + 16,777,216 + 4096 K

Up to 64 pixels, the first layer keeps the resolution and the pooling is padded. Pooling also follows conv3,
which halves the multiplications, and more epochs make better use of them (docs/benchmarks.md):

    layer                              output at 1x28x28        weights
    conv1  5x5, padding 2                24 x  28 x  28             600
    pool1  3x3, stride 2, padding 1      24 x  14 x  14
    conv2  3x3, padding 1                64 x  14 x  14          13,824
    pool2  3x3, stride 2, padding 1      64 x   7 x   7
    conv3  3x3, padding 1               128 x   7 x   7          73,728
    pool3  3x3, stride 2, padding 1     128 x   4 x   4
    conv4  3x3, padding 1               128 x   4 x   4         147,456
    conv5  3x3, padding 1               128 x   4 x   4         147,456
    pool5  3x3, stride 2, padding 1     128 x   2 x   2
    fc6, fc7, fc8                       256, 256, K             131,072 + 65,536 + 256 K
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from foldserve.training.errors import ModelError
from foldserve.training.models.blocks import (
    ConvBlock,
    ConvLayers,
    check_dropout,
    convolved_side,
    create_activation,
    scaled_channels,
)

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST_SIDE = 28
_LARGEST_SMALL_SIDE = 64


@dataclass(frozen=True)
class _Convolution:
    channels: int
    kernel_size: int
    stride: int
    padding: int
    is_pooled: bool


@dataclass(frozen=True)
class _Layout:
    convolutions: tuple[_Convolution, ...]
    pool_padding: int
    hidden_features: int


_IMAGENET = _Layout(
    convolutions=(
        _Convolution(64, kernel_size=11, stride=4, padding=2, is_pooled=True),
        _Convolution(192, kernel_size=5, stride=1, padding=2, is_pooled=True),
        _Convolution(384, kernel_size=3, stride=1, padding=1, is_pooled=False),
        _Convolution(256, kernel_size=3, stride=1, padding=1, is_pooled=False),
        _Convolution(256, kernel_size=3, stride=1, padding=1, is_pooled=True),
    ),
    pool_padding=0,
    hidden_features=4096,
)
_SMALL = _Layout(
    convolutions=(
        _Convolution(24, kernel_size=5, stride=1, padding=2, is_pooled=True),
        _Convolution(64, kernel_size=3, stride=1, padding=1, is_pooled=True),
        _Convolution(128, kernel_size=3, stride=1, padding=1, is_pooled=True),
        _Convolution(128, kernel_size=3, stride=1, padding=1, is_pooled=False),
        _Convolution(128, kernel_size=3, stride=1, padding=1, is_pooled=True),
    ),
    pool_padding=1,
    hidden_features=256,
)
_POOL_SIZE, _POOL_STRIDE = 3, 2  # overlapping, as in the paper


class AlexNet(nn.Module):
    """Maps normalised images [N, C, H, W] to logits [N, class_count]; both sides at least 28 pixels.

    Images whose shorter side is 28 to 64 pixels get the small layout, larger ones that of ImageNet.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        class_count: int,
        height: int,
        width: int,
        width_factor: float = 1.0,
        batch_norm: bool = True,
        activation: str = "relu",
        dropout: float = 0.5,
    ) -> None:
        """Build the layers.

        Args:
            in_channels: channels of the input.
            class_count: number of logits.
            height: input height in pixels.
            width: input width in pixels.
            width_factor: factor for the channels of every convolution and the features of the hidden layers.
            batch_norm: normalise after each convolution.
            activation: "relu" or "sigmoid".
            dropout: dropout probability before each hidden layer.

        Raises:
            ModelError: the input is too small, or an argument is out of range.
        """
        super().__init__()
        if min(height, width) < _SMALLEST_SIDE:
            raise ModelError(
                f"alexnet takes images of at least {_SMALLEST_SIDE}x{_SMALLEST_SIDE} pixels, "
                f"not {height}x{width}"
            )
        check_dropout(dropout)
        layout = _SMALL if min(height, width) <= _LARGEST_SMALL_SIDE else _IMAGENET

        self.features = ConvLayers()
        channels = in_channels
        for number, convolution in enumerate(layout.convolutions, start=1):
            outputs = scaled_channels(convolution.channels, width_factor)
            block = ConvBlock(
                channels,
                outputs,
                kernel_size=convolution.kernel_size,
                stride=convolution.stride,
                padding=convolution.padding,
                batch_norm=batch_norm,
                activation=activation,
            )
            self.features.add_module(f"block{number}", block)
            if convolution.is_pooled:
                pool = nn.MaxPool2d(_POOL_SIZE, stride=_POOL_STRIDE, padding=layout.pool_padding)
                self.features.add_module(f"pool{number}", pool)
            channels = outputs

        positions = _pooled_side(height, layout) * _pooled_side(width, layout)
        hidden = scaled_channels(layout.hidden_features, width_factor)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels * positions, hidden),
            create_activation(activation),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            create_activation(activation),
            nn.Linear(hidden, class_count),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, class_count] of ``images`` [N, C, H, W]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _pooled_side(side: int, layout: _Layout) -> int:
    for convolution in layout.convolutions:
        side = convolved_side(
            side,
            kernel_size=convolution.kernel_size,
            stride=convolution.stride,
            padding=convolution.padding,
        )
        if convolution.is_pooled:
            side = convolved_side(
                side, kernel_size=_POOL_SIZE, stride=_POOL_STRIDE, padding=layout.pool_padding
            )
    return side
