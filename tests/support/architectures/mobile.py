"""Networks for phones: inverted residuals of three generations, and channels that are shuffled."""

import torch
from torch import Tensor, nn

from tests.support.architectures.residual import SqueezeExcite


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project, add (Sandler et al. 2018, figure 4)."""

    def __init__(
        self,
        channels: int,
        expanded: int,
        out: int,
        stride: int,
        *,
        kernel: int = 3,
        activation: type[nn.Module] = nn.ReLU6,
        excite: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != channels:
            layers += [nn.Conv2d(channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), activation()]
        depthwise = nn.Conv2d(
            expanded, expanded, kernel, stride, padding=kernel // 2, groups=expanded, bias=False
        )
        layers += [depthwise, nn.BatchNorm2d(expanded), activation()]
        if excite is not None:
            layers.append(excite)
        layers += [nn.Conv2d(expanded, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.body = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _stem(out: int, activation: type[nn.Module]) -> list[nn.Module]:
    return [nn.Conv2d(3, out, 3, 2, padding=1, bias=False), nn.BatchNorm2d(out), activation()]


def mobilenet_v2() -> nn.Module:
    """The first stages of MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2) at half width."""
    return nn.Sequential(
        *_stem(16, nn.ReLU6),
        InvertedResidual(16, 16, 8, 1),
        InvertedResidual(8, 48, 12, 2),
        InvertedResidual(12, 72, 12, 1),
        InvertedResidual(12, 72, 16, 2),
        nn.Conv2d(16, 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )


def mobilenet_v3() -> nn.Module:
    """Blocks of MobileNetV3: hard swish, 5x5 and a hard gate (Howard et al. 2019, arXiv:1905.02244)."""
    swish = {"kernel": 5, "activation": nn.Hardswish}
    return nn.Sequential(
        *_stem(16, nn.Hardswish),
        InvertedResidual(16, 16, 16, 2, activation=nn.ReLU, excite=SqueezeExcite(16, gate=nn.Hardsigmoid)),
        InvertedResidual(16, 48, 24, 2, activation=nn.ReLU),
        InvertedResidual(24, 60, 24, 1, **swish, excite=SqueezeExcite(60, gate=nn.Hardsigmoid)),
        nn.Conv2d(24, 96, 1, bias=False),
        nn.BatchNorm2d(96),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 64),
        nn.Hardswish(),
        nn.Linear(64, 10),
    )


def efficientnet() -> nn.Module:
    """MBConv with SiLU and squeeze-and-excitation (Tan and Le 2019, arXiv:1905.11946, table 1)."""
    options = {"activation": nn.SiLU}
    return nn.Sequential(
        *_stem(16, nn.SiLU),
        InvertedResidual(16, 16, 8, 1, **options, excite=SqueezeExcite(16)),
        InvertedResidual(8, 48, 12, 2, **options, excite=SqueezeExcite(48, 24)),
        InvertedResidual(12, 72, 12, 1, **options, excite=SqueezeExcite(72, 24)),
        InvertedResidual(12, 72, 20, 2, kernel=5, **options, excite=SqueezeExcite(72, 24)),
        nn.Conv2d(20, 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class ShuffleUnit(nn.Module):
    """Half of the channels pass by, and all are shuffled afterwards (Ma et al. 2018, figure 3 c and d)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half, given = out // 2, channels if stride == 2 else channels // 2
        self.stride = stride
        self.left = nn.Sequential()
        if stride == 2:
            self.left = nn.Sequential(*self._depthwise(given, 2), *self._pointwise(given, half))
        self.right = nn.Sequential(
            *self._pointwise(given, half), *self._depthwise(half, stride), *self._pointwise(half, half)
        )

    @staticmethod
    def _pointwise(channels: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    @staticmethod
    def _depthwise(channels: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        return [conv, nn.BatchNorm2d(channels)]

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        y = torch.cat([self.left(left), self.right(right)], dim=1)
        batch, channels, height, width = y.shape
        return y.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)


def shufflenet_v2() -> nn.Module:
    """Two stages of ShuffleNetV2 (Ma et al. 2018, arXiv:1807.11164)."""
    return nn.Sequential(
        *_stem(16, nn.ReLU),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Sequential(ShuffleUnit(16, 32, 2), ShuffleUnit(32, 32, 1)),
        nn.Sequential(ShuffleUnit(32, 64, 2), ShuffleUnit(64, 64, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
