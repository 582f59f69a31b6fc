"""Defines a small residual network (He et al. 2016, "Deep residual learning ...", section 4.2).

One 3x3 convolution, three stages of n residual blocks with 16, 32 and 64 channels, the mean over the map, one
linear layer: ``depth`` is 6n + 2 weighted layers. The first blocks of stages 2 and 3 halve the map; their
shortcut is a strided 1x1 convolution (the paper's option B) instead of the identity.

    depth 14 (n = 2)                      output at 1x28x28      weights
    stem    3x3, padding 1                   16 x 28 x 28           144
    stage1  2 blocks of two 3x3              16 x 28 x 28         9,216
    stage2  the same, first with stride 2    32 x 14 x 14        32,256 + shortcut    512
    stage3  the same, first with stride 2    64 x  7 x  7       129,024 + shortcut  2,048
    mean over the map, linear                K                     64 K

Above 64 pixels, the stem is the paper's for ImageNet, 7x7 with stride 2 and 3x3 max pooling with stride 2, so
that the side of the maps in the stages is a quarter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from foldserve.training.errors import ModelError
from foldserve.training.models.blocks import ConvBlock, check_dropout, create_activation, scaled_channels

if TYPE_CHECKING:
    from torch import Tensor

_STAGE_CHANNELS = (16, 32, 64)
_DEPTHS = (8, 14, 20, 26, 32, 44, 56)
_SMALLEST_SIDE = 8  # for smaller images, the maps of the last stage are smaller than 2x2
_LARGEST_SMALL_SIDE = 64


class ResidualBlock(nn.Module):
    """Computes ``activation(block2(block1(x)) + shortcut(x))``: two 3x3 convolutions, the first strided."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, batch_norm: bool, activation: str
    ) -> None:
        super().__init__()
        self.block1 = ConvBlock(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=stride,
            padding=1,
            batch_norm=batch_norm,
            activation=activation,
        )
        self.block2 = ConvBlock(
            out_channels, out_channels, kernel_size=3, padding=1, batch_norm=batch_norm, activation=None
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvBlock(
                in_channels,
                out_channels,
                kernel_size=1,
                stride=stride,
                batch_norm=batch_norm,
                activation=None,
            )
        self.activation = create_activation(activation)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps [N, K, H / stride, W / stride], rounded up, of ``maps`` [N, C, H, W]."""
        activated: Tensor = self.activation(self.block2(self.block1(maps)) + self.shortcut(maps))
        return activated


class ResNet(nn.Module):
    """Maps normalised images [N, C, H, W] to logits [N, class_count]; both sides at least 8 pixels."""

    def __init__(
        self,
        *,
        in_channels: int,
        class_count: int,
        height: int,
        width: int,
        depth: int = 14,
        width_factor: float = 1.0,
        batch_norm: bool = True,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        """Build the layers.

        Args:
            in_channels: channels of the input.
            class_count: number of logits.
            height: input height in pixels.
            width: input width in pixels.
            depth: number of weighted layers without shortcuts: 8, 14, 20, 26, 32, 44 or 56.
            width_factor: factor for the channels of every convolution.
            batch_norm: normalise after each convolution.
            activation: "relu" or "sigmoid".
            dropout: dropout probability before the linear layer.

        Raises:
            ModelError: the input is too small, or an argument is out of range.
        """
        super().__init__()
        if min(height, width) < _SMALLEST_SIDE:
            raise ModelError(
                f"resnet takes images of at least {_SMALLEST_SIDE}x{_SMALLEST_SIDE} pixels, "
                f"not {height}x{width}"
            )
        if depth not in _DEPTHS:
            raise ModelError(f"resnet's depth is {depth}; expected one of {', '.join(map(str, _DEPTHS))}")
        check_dropout(dropout)
        blocks_per_stage = (depth - 2) // 6
        channels = scaled_channels(_STAGE_CHANNELS[0], width_factor)

        if min(height, width) <= _LARGEST_SMALL_SIDE:
            self.stem = nn.Sequential(
                ConvBlock(
                    in_channels,
                    channels,
                    kernel_size=3,
                    padding=1,
                    batch_norm=batch_norm,
                    activation=activation,
                )
            )
        else:
            self.stem = nn.Sequential(
                ConvBlock(
                    in_channels,
                    channels,
                    kernel_size=7,
                    stride=2,
                    padding=3,
                    batch_norm=batch_norm,
                    activation=activation,
                ),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        stages: list[nn.Sequential] = []
        for number, stage_channels in enumerate(_STAGE_CHANNELS, start=1):
            stage = nn.Sequential()
            outputs = scaled_channels(stage_channels, width_factor)
            for index in range(blocks_per_stage):
                stride = 2 if number > 1 and index == 0 else 1
                block = ResidualBlock(
                    channels, outputs, stride=stride, batch_norm=batch_norm, activation=activation
                )
                stage.append(block)
                channels = outputs
            stages.append(stage)
        self.stage1, self.stage2, self.stage3 = stages
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels, class_count),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, class_count] of ``images`` [N, C, H, W]."""
        maps = self.stage3(self.stage2(self.stage1(self.stem(images))))
        logits: Tensor = self.classifier(maps)
        return logits
