"""Augmentation of whole batches, on the device they are on; each sample gets its own draw.

Pure functions of uint8 or float images [N, C, H, W] and an explicit generator on the same device. No loop
over samples: a crop of N images is one gather from a view of all windows. Empty pixels are 0, black. What
mixes images of different classes is in `foldserve.training.augmentation.mixing`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Generator, Tensor

# Of random erasing (Zhong et al. 2017): share of the image's area, and the rectangle's height over width.
_ERASED_AREA = (0.02, 0.2)
_ERASED_ASPECT = (0.3, 1 / 0.3)
# Of random resized crops (Szegedy et al. 2015): height over width.
_CROP_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations a batch goes through, in this order.

    ``smallest_crop`` is a share of the area, 1 for no resized crop; ``crop_padding`` in pixels, 0 for no
    crop; ``erase_probability`` a sample, 0 for none.
    """

    crop_padding: int
    flip: bool
    erase_probability: float
    smallest_crop: float = 1.0

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return augmented ``images`` [N, C, H, W] of the same type."""
        if self.smallest_crop < 1:
            images = random_resized_crop(images, self.smallest_crop, generator)
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator)
        if self.flip:
            images = random_horizontal_flip(images, generator)
        if self.erase_probability:
            images = random_erase(images, self.erase_probability, generator)
        return images


NO_AUGMENTATION = Augmentation(crop_padding=0, flip=False, erase_probability=0.0)


def random_resized_crop(images: Tensor, smallest_share: float, generator: Generator) -> Tensor:
    """Cut a rectangle of random area, aspect and place, and scale it to the original size, bilinearly.

    Its area is uniform from ``smallest_share`` of the image to all of it.
    """
    count, _, height, width = images.shape
    area, aspect, top, left = torch.rand(4, count, generator=generator, device=images.device)
    area = smallest_share + area * (1 - smallest_share)
    low, high = (math.log(value) for value in _CROP_ASPECT)
    stretch = torch.exp(0.5 * (low + aspect * (high - low)))
    # Half the sides of the rectangle and its centre, where the image spans -1..1; it never leaves the image.
    half_height, half_width = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
    centre_y, centre_x = (2 * top - 1) * (1 - half_height), (2 * left - 1) * (1 - half_width)
    empty = torch.zeros_like(area)
    across = torch.stack([half_width, empty, centre_x], dim=1)
    down = torch.stack([empty, half_height, centre_y], dim=1)
    places = F.affine_grid(
        torch.stack([across, down], dim=1), [count, 1, height, width], align_corners=False
    )  # [N, H, W, 2]: where each pixel is taken from
    pixels = F.grid_sample(images.float(), places, padding_mode="border", align_corners=False)
    return pixels.to(images.dtype) if images.dtype.is_floating_point else pixels.round().to(images.dtype)


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Pad by ``padding`` black pixels on every side and cut the original size at a random place."""
    count, _, height, width = images.shape
    place_count = 2 * padding + 1
    top, left = torch.randint(place_count, (2, count), generator=generator, device=images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    # A view of all windows [N, C, 2 * padding + 1, 2 * padding + 1, H, W], from which each sample takes one.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def random_horizontal_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror left and right with probability 1/2."""
    flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Blacken, with ``probability``, a rectangle of random area, aspect and place."""
    count, _, height, width = images.shape
    # Per sample: whether, area, aspect, top, left; all in 0..1.
    whether, area, aspect, top, left = torch.rand(5, count, 1, generator=generator, device=images.device)
    area = height * width * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = (math.log(value) for value in _ERASED_ASPECT)
    aspect = torch.exp(low + aspect * (high - low))  # uniform in its logarithm: tall as often as wide
    erased_height = (area * aspect).sqrt().round().clamp(1, height)
    erased_width = (area / aspect).sqrt().round().clamp(1, width)
    first_row = (top * (height - erased_height + 1)).floor()
    first_column = (left * (width - erased_width + 1)).floor()
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    in_rows = (row >= first_row) & (row < first_row + erased_height)  # [N, H]
    in_columns = (column >= first_column) & (column < first_column + erased_width)  # [N, W]
    erased = (whether < probability)[:, :, None] & in_rows[:, :, None] & in_columns[:, None, :]
    return images.masked_fill(erased[:, None], 0)
