"""Colour jitter: brightness, contrast, saturation and hue of each image at random, as in torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foldserve.training.augmentation import colour

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class ColorJitter:
    """Changes colours by random factors, uniform in 1 plus or minus each of the first three.

    Brightness, contrast, saturation and hue follow each other in this order. ``hue`` is the largest turn of
    the colour circle, 0 to 0.5. Grey images have no saturation and no hue.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return jittered ``images``, uint8 [N, C, H, W] with one or three channels."""
        draws = torch.rand(4, len(images), generator=generator, device=images.device) * 2 - 1
        if self.brightness:
            images = colour.blend(torch.zeros_like(images), images, self._factors(draws[0], self.brightness))
        if self.contrast:
            images = colour.blend(colour.mean_grey(images), images, self._factors(draws[1], self.contrast))
        if self.saturation:
            images = colour.blend(colour.grey(images), images, self._factors(draws[2], self.saturation))
        if self.hue:
            images = colour.turn_hue(images, draws[3] * self.hue)
        return images

    @staticmethod
    def _factors(draws: Tensor, strength: float) -> Tensor:
        return (1 + draws * strength).clamp(min=0)
