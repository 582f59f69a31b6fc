"""Networks that add: ResNet's bottleneck, ResNeXt with squeeze-and-excitation, WideResNet, RepVGG."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Channels weighed by their means (Hu et al. 2018, arXiv:1709.01507, figure 2)."""

    def __init__(self, channels: int, reduction: int = 4, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, max(1, channels // reduction), 1)
        self.expand = nn.Conv2d(max(1, channels // reduction), channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 around a shortcut; ``groups`` makes it ResNeXt's."""

    def __init__(
        self, channels: int, width: int, out: int, stride: int = 1, *, groups: int = 1, excite: bool = False
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.excite = SqueezeExcite(out) if excite else None
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.excite is not None:
            y = self.excite(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _resnet(*, groups: int, excite: bool) -> nn.Module:
    stem = [nn.Conv2d(3, 16, 7, 2, padding=3, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    options = {"groups": groups, "excite": excite}
    return nn.Sequential(
        *stem,
        nn.MaxPool2d(3, 2, padding=1),
        nn.Sequential(Bottleneck(16, 8, 32, **options), Bottleneck(32, 8, 32, **options)),
        nn.Sequential(Bottleneck(32, 16, 64, 2, **options), Bottleneck(64, 16, 64, **options)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def resnet_bottleneck() -> nn.Module:
    """Two stages of ResNet-50's blocks (He et al. 2016a, arXiv:1512.03385, figure 5 right)."""
    return _resnet(groups=1, excite=False)


def se_resnext() -> nn.Module:
    """Two stages of grouped bottlenecks (Xie et al. 2017, arXiv:1611.05431) with squeeze-and-excitation."""
    return _resnet(groups=4, excite=True)


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution (He et al. 2016b, arXiv:1603.05027, figure 4e)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(0.3)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(activated)))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


def wide_resnet() -> nn.Module:
    """WideResNet's dropout blocks, two groups of two (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""
    blocks = [PreActivation(16, 32, 1), PreActivation(32, 32, 1), PreActivation(32, 64, 2)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, padding=1, bias=False),
        *blocks,
        PreActivation(64, 64, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class RepVggBlock(nn.Module):
    """3x3, 1x1 and identity, each with its batch norm, added up as they are trained (section 3.2)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.dense = self._branch(channels, out, 3, stride)
        self.pointwise = self._branch(channels, out, 1, stride)
        self.identity = nn.BatchNorm2d(channels) if channels == out and stride == 1 else None

    @staticmethod
    def _branch(channels: int, out: int, kernel: int, stride: int) -> nn.Sequential:
        branch = nn.Sequential()
        branch.add_module("conv", nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False))
        branch.add_module("bn", nn.BatchNorm2d(out))
        return branch

    def forward(self, x: Tensor) -> Tensor:
        shortcut = 0 if self.identity is None else self.identity(x)
        return torch.relu(self.dense(x) + self.pointwise(x) + shortcut)


def repvgg() -> nn.Module:
    """RepVGG as trained, not yet merged (Ding et al. 2021, arXiv:2101.03697)."""
    widths = [(3, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2)]
    return nn.Sequential(
        *[RepVggBlock(*width) for width in widths],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
