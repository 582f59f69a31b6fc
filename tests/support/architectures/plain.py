"""Networks in one line: VGG with batch norm, ConvNeXt, ConvMixer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def vgg_bn() -> nn.Module:
    """Configuration A of VGG, narrow, with batch norm (Simonyan and Zisserman 2015, arXiv:1409.1556)."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, "pool", 16, "pool", 32, 32, "pool", 64, 64, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
            channels = width
    classifier = [nn.Linear(64 * 4 * 4, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *classifier)


class ConvNeXtBlock(nn.Module):
    """7x7 by channel, layer norm with channels last, an inverted bottleneck (Liu et al. 2022, figure 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """ConvNeXt's patches and blocks, where layer norm stays (Liu et al. 2022, arXiv:2201.03545)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.GroupNorm(1, 16),
        ConvNeXtBlock(16),
        ConvNeXtBlock(16),
        nn.Conv2d(16, 32, 2, 2),
        ConvNeXtBlock(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, 10),
    )


class Residual(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.fn = function

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def convmixer() -> nn.Module:
    """Batch norm behind GELU, before padding (ConvMixer; Trockman and Kolter 2022, arXiv:2201.09792)."""
    dim = 24
    blocks = [
        nn.Sequential(
            Residual(
                nn.Sequential(
                    nn.Conv2d(dim, dim, 5, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim)
                )
            ),
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.BatchNorm2d(dim),
        )
        for _ in range(2)
    ]
    return nn.Sequential(
        nn.Conv2d(3, dim, 8, stride=8),
        nn.GELU(),
        nn.BatchNorm2d(dim),
        *blocks,
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(dim, 10),
    )
