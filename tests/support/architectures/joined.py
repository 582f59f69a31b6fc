"""Networks that join branches: DenseNet, DPN, Inception, SqueezeNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv_norm(channels: int, out: int, kernel: int | tuple[int, int], **options: object) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, bias=False, **options), nn.BatchNorm2d(out, eps=1e-3), nn.ReLU(True)
    )


class DenseLayer(nn.Module):
    """Batch norm over everything before it, then a bottleneck of its own (Huang et al. 2017, DenseNet-BC)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(y)))


class DenseBlock(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


def _dense_block(channels: int, growth: int, count: int) -> DenseBlock:
    return DenseBlock(
        {f"denselayer{index + 1}": DenseLayer(channels + index * growth, growth) for index in range(count)}
    )


def densenet() -> nn.Module:
    """Two dense blocks with a transition (Huang et al. 2017, arXiv:1608.06993)."""
    transition = nn.Sequential(
        nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)
    )
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        _dense_block(16, 8, 3),
        transition,
        _dense_block(20, 8, 2),
        nn.BatchNorm2d(36),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(36, 10),
    )


class DualPath(nn.Module):
    """One part is added, one appended (Chen et al. 2017, figure 2 d); batch norm before each convolution."""

    def __init__(self, channels: int, width: int, added: int, appended: int, *, first: bool) -> None:
        super().__init__()
        self.added = added
        self.project = self._unit(channels, added + 2 * appended, 1) if first else None
        self.body = nn.Sequential(
            self._unit(channels, width, 1),
            self._unit(width, width, 3, padding=1, groups=4),
            self._unit(width, added + appended, 1),
        )

    @staticmethod
    def _unit(channels: int, out: int, kernel: int, **options: int) -> nn.Sequential:
        conv = nn.Conv2d(channels, out, kernel, bias=False, **options)
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv)

    def forward(self, paths: tuple[Tensor, Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat(paths, 1) if isinstance(paths, tuple) else paths
        before = x if self.project is None else self.project(x)
        y = self.body(x)
        residual = before[:, : self.added] + y[:, : self.added]
        return residual, torch.cat([before[:, self.added :], y[:, self.added :]], 1)


class DualPathNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(DualPath(16, 16, 24, 8, first=True), DualPath(48, 16, 24, 8, first=False))
        self.norm, self.head = nn.BatchNorm2d(56), nn.Conv2d(56, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(torch.cat(self.blocks(self.stem(x)), 1)))
        return self.head(F.adaptive_avg_pool2d(y, 1)).flatten(1)


def dpn() -> nn.Module:
    """A stage of a dual path network (Chen et al. 2017, arXiv:1707.01629)."""
    return DualPathNetwork()


class Mixed(nn.Module):
    """Four branches, one with 7x7 taken apart into 1x7 and 7x1 (Szegedy et al. 2016, figure 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch1x1 = _conv_norm(channels, 16, 1)
        self.branch5x5 = nn.Sequential(_conv_norm(channels, 12, 1), _conv_norm(12, 16, 5, padding=2))
        self.branch7x7 = nn.Sequential(
            _conv_norm(channels, 12, 1),
            _conv_norm(12, 12, (1, 7), padding=(0, 3)),
            _conv_norm(12, 16, (7, 1), padding=(3, 0)),
        )
        self.branch_pool = _conv_norm(channels, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1)
        branches = [self.branch1x1(x), self.branch5x5(x), self.branch7x7(x), self.branch_pool(pooled)]
        return torch.cat(branches, 1)


class Reduction(nn.Module):
    """Three ways to half the sides, joined (Szegedy et al. 2016, figure 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _conv_norm(channels, 16, 3, stride=2)
        self.branch_double = nn.Sequential(
            _conv_norm(channels, 12, 1), _conv_norm(12, 16, 3, padding=1), _conv_norm(16, 16, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), self.branch_double(x), F.max_pool2d(x, 3, stride=2)], 1)


def inception() -> nn.Module:
    """The blocks of Inception v3 (Szegedy et al. 2016, arXiv:1512.00567)."""
    return nn.Sequential(
        _conv_norm(3, 16, 3, stride=2),
        Mixed(16),
        Reduction(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


class Fire(nn.Module):
    """Squeeze, then expand two ways (Iandola et al. 2016, figure 1)."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


def squeezenet() -> nn.Module:
    """SqueezeNet's head and fires; it has no batch norm (Iandola et al. 2016, arXiv:1602.07360)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2),
        nn.ReLU(True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(32, 8, 32),
        Fire(64, 8, 32),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 48),
        nn.Dropout(0.5),
        nn.Conv2d(96, 10, 1),
        nn.ReLU(True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )
