"""Defines LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition").

The architecture is the paper's: two 5x5 convolutions, each followed by 2x2 pooling; a third 5x5 convolution,
C5, which at 28x28 covers its whole 5x5 map; two fully connected layers. Batch norm, ReLU, max pooling and
wider maps are new.

    layer                     output at 28x28   weights
    C1  5x5, padding 2        16 x 28 x 28          400
    S2  2x2 max pooling       16 x 14 x 14
    C3  5x5                   32 x 10 x 10       12,800
    S4  2x2 max pooling       32 x  5 x  5
    C5  5x5                   84 x  1 x  1       67,200
    F6  linear                84                  7,056
    out linear                10                    840
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from foldserve.training.errors import ModelError
from foldserve.training.models.blocks import (
    ConvBlock,
    ConvLayers,
    check_dropout,
    convolved_side,
    create_activation,
)

if TYPE_CHECKING:
    from torch import Tensor

_KERNEL_SIZE = 5
_SMALLEST_SIDE = 28  # for smaller images, the 5x5 kernel of C5 does not fit its map


class LeNet(nn.Module):
    """Maps normalised images [N, C, H, W] to logits [N, class_count]; both sides at least 28 pixels."""

    def __init__(
        self,
        *,
        in_channels: int,
        class_count: int,
        height: int,
        width: int,
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
            batch_norm: normalise after each convolution.
            activation: "relu" or "sigmoid".
            dropout: dropout probability before each linear layer.

        Raises:
            ModelError: the input is too small, or an argument is out of range.
        """
        super().__init__()
        if min(height, width) < _SMALLEST_SIDE:
            raise ModelError(
                f"lenet takes images of at least {_SMALLEST_SIDE}x{_SMALLEST_SIDE} pixels, "
                f"not {height}x{width}"
            )
        check_dropout(dropout)

        def block(inputs: int, outputs: int, *, padding: int) -> ConvBlock:
            return ConvBlock(
                inputs,
                outputs,
                kernel_size=_KERNEL_SIZE,
                padding=padding,
                batch_norm=batch_norm,
                activation=activation,
            )

        self.features = ConvLayers(
            block(in_channels, 16, padding=2),
            nn.MaxPool2d(kernel_size=2, stride=2),
            block(16, 32, padding=0),
            nn.MaxPool2d(kernel_size=2, stride=2),
            block(32, 84, padding=0),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(84 * _c5_side(height) * _c5_side(width), 84),
            create_activation(activation),
            nn.Dropout(dropout),
            nn.Linear(84, class_count),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, class_count] of ``images`` [N, C, H, W]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _c5_side(side: int) -> int:
    side = convolved_side(side, kernel_size=_KERNEL_SIZE, padding=2) // 2
    side = convolved_side(side, kernel_size=_KERNEL_SIZE) // 2
    return convolved_side(side, kernel_size=_KERNEL_SIZE)
