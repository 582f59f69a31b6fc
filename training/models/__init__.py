"""Defines the networks, their building block, and the registry of their names."""

from foldserve.training.models.alexnet import AlexNet
from foldserve.training.models.blocks import ConvBlock
from foldserve.training.models.custom_model import is_import_path
from foldserve.training.models.lenet import LeNet
from foldserve.training.models.normalized import Normalized
from foldserve.training.models.registry import MODELS, create_model, register_custom_model
from foldserve.training.models.resnet import ResNet

__all__ = [
    "MODELS",
    "AlexNet",
    "ConvBlock",
    "LeNet",
    "Normalized",
    "ResNet",
    "create_model",
    "is_import_path",
    "register_custom_model",
]
