"""Networks that the exporter must get right, and the way they are given statistics that prove something."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foldserve.artifact.format import ModelMetadata
from foldserve.export.graph.build import BuiltModel, build_model
from foldserve.export.graph.trace import trace


def build_network(network: nn.Module, metadata: ModelMetadata, *, moves_clips: bool = True) -> BuiltModel:
    """Trace ``network``, which takes normalised floats, and build its ``model.onnx``."""
    return build_model(trace(network, metadata.image.shape).model, metadata, moves_clips=moves_clips)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm random weights and statistics (fresh ones are the identity)."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.3, 3.0, generator=generator)
            if module.affine:
                with torch.no_grad():
                    # Both signs: a negative gamma would be lost by code that assumes batch norm keeps the
                    # order.
                    module.weight.uniform_(-1.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.5, generator=generator)
    return network.eval()


class Classifier(nn.Module):
    """``body`` on images, the mean over space, and a linear layer to 4 classes."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Functional(nn.Module):
    """Convolution and batch norm called as functions on buffers, in no module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))
        for name, value in {"mean": torch.randn(6), "var": torch.rand(6) + 0.5}.items():
            self.register_buffer(name, value)
        self.gamma, self.beta = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding=1)
        return F.relu(F.batch_norm(y, self.mean, self.var, self.gamma, self.beta, training=False, eps=1e-3))


class Residual(nn.Module):
    """A basic block with a projected shortcut, used around itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Dense(nn.Module):
    """Batch norm over a concatenation, before ReLU and convolution: nothing beside it to fold into."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.conv = nn.Conv2d(7, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(torch.cat([x, self.first(x)], dim=1))))


class SharedConvolution(nn.Module):
    """One convolution applied twice, each time followed by another batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.first = nn.Conv2d(3, 6, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv(F.relu(self.norm1(self.conv(F.relu(self.first(x)))))))


class SharedOutput(nn.Module):
    """A convolution whose output is read besides by another branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.relu(self.norm(y)) + y


class SharedNorm(nn.Module):
    """One batch norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.relu(self.norm(self.conv1(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project, and add."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.Hardswish()
        )
        self.squeeze = nn.Sequential(nn.Conv2d(12, 3, 1), nn.ReLU(), nn.Conv2d(3, 12, 1), nn.Hardsigmoid())
        self.project = nn.Sequential(nn.Conv2d(12, 3, 1, bias=False), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y * self.squeeze(y.mean((2, 3), keepdim=True))
        return x + self.project(y)


class ChannelShuffle(nn.Module):
    """Grouped convolutions with their channels interleaved between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 1, groups=3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.norm2(self.conv2(y))


class Inception(nn.Module):
    """Branches of several kernels, concatenated and normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, size, padding=size // 2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
            for size in (1, 3, 5)
        )
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([branch(x) for branch in self.branches], dim=1))
