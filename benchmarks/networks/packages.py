"""Builds networks of torchvision and timm by name, with fresh weights."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

PACKAGES = ("torchvision", "timm")

# Operators of torchvision's C++ extension whose shapes it registers at import.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# What these packages call the image's side, where a network has to know it.
_SIDE_ARGUMENT = {"torchvision": "image_size", "timm": "img_size"}


@dataclass(frozen=True)
class Network:
    """A network by name, and the images [3, side, side] that it is measured on.

    ``is_sized``: the side is fixed when the network is built.
    """

    package: str
    name: str
    side: int
    is_sized: bool = False

    @property
    def key(self) -> str:
        """Unique name, which ends in a Python identifier."""
        return f"{self.package}/{self.name}"

    def build(self) -> nn.Module:
        """Return the network in eval mode, with the weights that its package makes."""
        sized = {_SIDE_ARGUMENT[self.package]: self.side} if self.is_sized else {}
        return build(self.package, self.name, **sized)


def build(package: str, name: str, **arguments: Any) -> nn.Module:
    """Return the network called ``name`` in ``package``, in eval mode."""
    network: nn.Module
    if package == "torchvision":
        network = import_torchvision().models.get_model(name, weights=None, **arguments)
    else:
        import_torchvision()  # timm imports it
        network = importlib.import_module("timm").create_model(name, pretrained=False, **arguments)
    return network.eval()


def import_torchvision() -> ModuleType:
    """Import torchvision; it works beside a build of torch that its C++ extension was not made for.

    Its wheels are for the CUDA build. Beside another one the extension does not load, which torchvision
    allows for, except that it registers shapes of two of the extension's operators. No classifier uses
    them.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    for operator in _OPERATORS:
        torch.library.define(f"torchvision::{operator.partition('(')[0]}", operator[operator.index("(") :])
    return importlib.import_module("torchvision")
