"""`python -m benchmarks.export_networks`: writes well-known networks as weights and ONNX files, to export.

They are written anew from the papers, since torchvision's wheels need the CUDA build. Weights are seeded and
batch norm gets random statistics, as cost does not depend on what was learnt.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from benchmarks.export_figures import with_random_statistics
from foldserve.training.models import create_model

if TYPE_CHECKING:
    from torch import Tensor

_OPSET = 18
_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_RESNET50 = ((64, 3), (128, 4), (256, 6), (512, 3))
_SQUEEZENET = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


def vgg16(class_count: int = 1000) -> nn.Module:
    """Return VGG-16 with batch norm (Simonyan and Zisserman 2014) for 224 pixels: 138 M parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in _VGG16:
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [
        nn.Flatten(),
        nn.Linear(channels * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, class_count),
    ]
    return nn.Sequential(*layers)


class _Bottleneck(nn.Module):
    """Computes ``relu(1x1 -> 3x3 -> 1x1 + shortcut)``, the 3x3 strided."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(in_channels, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride=stride),
            nn.ReLU(),
            *_convolution(width, 4 * width, 1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != 4 * width:
            self.shortcut = nn.Sequential(*_convolution(in_channels, 4 * width, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


def resnet50(class_count: int = 1000) -> nn.Module:
    """Return ResNet-50 (He et al. 2015): 25.6 M parameters."""
    layers: list[nn.Module] = [
        *_convolution(3, 64, 7, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = 64
    for stage, (width, depth) in enumerate(_RESNET50):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(_Bottleneck(channels, width, stride))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, class_count))


class _Fire(nn.Module):
    """Concatenates a 1x1 and a 3x3 convolution of a 1x1 convolution that squeezes the channels."""

    def __init__(self, in_channels: int, squeezed: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.left = nn.Conv2d(squeezed, width, 1)
        self.right = nn.Conv2d(squeezed, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.left(x), self.right(x)], dim=1))


def squeezenet(class_count: int = 1000) -> nn.Module:
    """Return SqueezeNet 1.1 (Iandola et al. 2016): 1.2 M parameters, a file of 5 MB."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)]
    channels = 64
    for index, (squeezed, width) in enumerate(_SQUEEZENET):
        layers.append(_Fire(channels, squeezed, width))
        channels = 2 * width
        if index in {1, 3}:
            layers.append(nn.MaxPool2d(3, stride=2))
    layers += [nn.Conv2d(channels, class_count, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def _convolution(in_channels: int, width: int, kernel_size: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    padding = kernel_size // 2
    return (
        nn.Conv2d(in_channels, width, kernel_size, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(width),
    )


_FACTORIES = {"vgg16": vgg16, "resnet50": resnet50, "squeezenet": squeezenet}


def build(arch: str, class_count: int, side: int) -> nn.Module:
    """Return the network ``arch``, ours or built in, with seeded weights of realistic sizes."""
    torch.manual_seed(0)
    if arch in _FACTORIES:
        network = _FACTORIES[arch](class_count)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    else:
        network = create_model(arch, in_channels=3, class_count=class_count, height=side, width=side)
    with_random_statistics(network)
    return network.eval()


def main() -> None:
    """Write one network: a state dict, or an ONNX file with batch norm in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch")
    parser.add_argument("file", type=Path, help="NAME.pt or NAME.onnx")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--side", type=int, default=224)
    args = parser.parse_args()
    network = build(args.arch, args.classes, args.side)
    if args.file.suffix == ".pt":
        torch.save(network.state_dict(), args.file)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, args.side, args.side),),
            args.file,
            dynamo=True,
            optimize=False,
            external_data=False,
            verbose=False,
            opset_version=_OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )


if __name__ == "__main__":
    main()
