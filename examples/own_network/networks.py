"""A network of one's own: any function that returns a torch.nn.Module.

foldserve passes the arguments that the function declares: in_channels, class_count, height and width.
"""

from __future__ import annotations

from torch import Tensor, nn


class TinyNet(nn.Module):
    """Two convolutions with batch norm, which the export folds, global pooling and a linear layer."""

    def __init__(self, in_channels: int, class_count: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, class_count)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, K] of normalised images [N, C, H, W]."""
        return self.head(self.features(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def tiny_net(in_channels: int, class_count: int) -> nn.Module:
    """Return a network for images of ``in_channels`` channels and any size."""
    return TinyNet(in_channels, class_count)
