"""Augments whole batches on their device; each sample has its own random draw.

Pure functions of uint8 or float images [N, C, H, W] and an explicit generator on the same device. They do not
loop over samples: a crop of N images is one gather from a view of all windows. What lies beyond an image is
in `foldserve.training.augmentation.border`, mixing of two in `foldserve.training.augmentation.mixing`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from foldserve.training.augmentation.border import add_border

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from foldserve.training.augmentation.border import Border
    from foldserve.training.augmentation.color_jitter import ColorJitter
    from foldserve.training.augmentation.random_policy import RandomPolicy

# Random erasing (Zhong et al. 2017): the rectangle's fraction of the image's area, and its height over width.
_ERASED_AREA = (0.02, 0.2)
_ERASED_ASPECT = (0.3, 1 / 0.3)
# Random resized crops (Szegedy et al. 2015): height over width.
_CROP_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Augmentation:
    """Applies a resized crop, a padded crop, a flip, a policy, colour jitter and erasing, in this order.

    ``smallest_crop`` is a fraction of the area, 1 for no resized crop; ``crop_padding`` is in pixels, 0 for
    no crop; ``erase_probability`` is per sample, 0 for no erasing. ``border`` is what padded crops show of
    beyond the image; a policy has its own.
    """

    crop_padding: int
    flip: bool
    erase_probability: float
    smallest_crop: float = 1.0
    policy: RandomPolicy | None = None
    jitter: ColorJitter | None = None
    border: Border = "mirror"

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return augmented ``images`` [N, C, H, W] of the same dtype; policy and jitter take uint8 only."""
        if self.smallest_crop < 1:
            images = random_resized_crop(images, self.smallest_crop, generator)
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator, self.border)
        if self.flip:
            images = random_horizontal_flip(images, generator)
        if self.policy is not None:
            images = self.policy(images, generator)
        if self.jitter is not None:
            images = self.jitter(images, generator)
        if self.erase_probability:
            images = random_erase(images, self.erase_probability, generator)
        return images

    def without_policy(self) -> Augmentation:
        """Return the augmentation without its policy."""
        return replace(self, policy=None)


NO_AUGMENTATION = Augmentation(crop_padding=0, flip=False, erase_probability=0.0)


def random_resized_crop(images: Tensor, smallest_share: float, generator: Generator) -> Tensor:
    """Crop a rectangle of random area, aspect and position, and resize it bilinearly to the original size.

    Its area is uniform from the fraction ``smallest_share`` of the image to the whole image.
    """
    count, _, height, width = images.shape
    area, aspect, top, left = torch.rand(4, count, generator=generator, device=images.device)
    area = smallest_share + area * (1 - smallest_share)
    low, high = (math.log(value) for value in _CROP_ASPECT)
    stretch = torch.exp(0.5 * (low + aspect * (high - low)))
    # Half the sides and the centre of the rectangle, in coordinates from -1 to 1; it stays within the image.
    half_height, half_width = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
    centre_y, centre_x = (2 * top - 1) * (1 - half_height), (2 * left - 1) * (1 - half_width)
    empty = torch.zeros_like(area)
    across = torch.stack([half_width, empty, centre_x], dim=1)
    down = torch.stack([empty, half_height, centre_y], dim=1)
    places = F.affine_grid(
        torch.stack([across, down], dim=1), [count, 1, height, width], align_corners=False
    )  # [N, H, W, 2]: the source of each pixel
    pixels = F.grid_sample(images.float(), places, padding_mode="border", align_corners=False)
    return pixels.to(images.dtype) if images.dtype.is_floating_point else pixels.round().to(images.dtype)


def random_crop(images: Tensor, padding: int, generator: Generator, border: Border = "mirror") -> Tensor:
    """Add ``padding`` pixels on every side and crop to the original size at a random position."""
    count, _, height, width = images.shape
    place_count = 2 * padding + 1
    top, left = torch.randint(place_count, (2, count), generator=generator, device=images.device)
    padded = add_border(images, padding, border)
    # A view of all windows [N, C, 2 * padding + 1, 2 * padding + 1, H, W]; each sample takes one.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def random_horizontal_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Set a rectangle of random area, aspect and position to black, with ``probability`` per image."""
    count, _, height, width = images.shape
    # Per sample: whether to erase, area, aspect, top and left of the rectangle; all in 0..1.
    whether, area, aspect, top, left = torch.rand(5, count, 1, generator=generator, device=images.device)
    area = height * width * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = (math.log(value) for value in _ERASED_ASPECT)
    aspect = torch.exp(low + aspect * (high - low))  # log-uniform, so that tall is as likely as wide
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
