"""The networks, the block they are made of, and the table of their names."""

from training.models.alexnet import AlexNet
from training.models.blocks import ConvBlock
from training.models.lenet import LeNet
from training.models.normalized import Normalized
from training.models.own import is_own
from training.models.registry import MODELS, create_model, register_own
from training.models.resnet import ResNet

__all__ = [
    "MODELS",
    "AlexNet",
    "ConvBlock",
    "LeNet",
    "Normalized",
    "ResNet",
    "create_model",
    "is_own",
    "register_own",
]
