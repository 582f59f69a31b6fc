"""All of them by name, with what must become of each batch norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.architectures import joined, mobile, plain, residual

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True)
class Expected:
    """How to make a network, how many batch norms fold, and why the others do not.

    ``rewritten`` has, by a part of the reason, how many are rewritten for it.
    """

    make: Callable[[], nn.Module]
    folded: int
    rewritten: dict[str, int]


NETWORKS = {
    "ResNet (bottleneck)": Expected(residual.resnet_bottleneck, 15, {}),
    "SE-ResNeXt": Expected(residual.se_resnext, 15, {}),
    "WideResNet": Expected(residual.wide_resnet, 5, {"Add": 3, "but for Relu": 1}),
    "RepVGG": Expected(residual.repvgg, 15, {}),
    "DenseNet": Expected(joined.densenet, 6, {"but for Relu": 7}),
    "DPN": Expected(joined.dpn, 5, {"but for Relu": 4}),
    "Inception v3": Expected(joined.inception, 12, {}),
    "SqueezeNet": Expected(joined.squeezenet, 0, {}),
    "MobileNetV2": Expected(mobile.mobilenet_v2, 13, {}),
    "MobileNetV3": Expected(mobile.mobilenet_v3, 10, {}),
    "EfficientNet": Expected(mobile.efficientnet, 13, {}),
    "ShuffleNetV2": Expected(mobile.shufflenet_v2, 17, {}),
    "VGG": Expected(plain.vgg_bn, 6, {}),
    "ConvNeXt": Expected(plain.convnext, 0, {}),
    "ConvMixer": Expected(plain.convmixer, 1, {"goes to 2 places": 2, "behind it is neither": 2}),
}
