"""TrivialAugment and RandAugment: each image gets operations of random kind and strength.

trivial  one operation of uniform strength per image: Müller and Hutter 2021, arXiv:2103.10158 ("Wide" ranges)
rand     several operations of one strength per image: Cubuk et al. 2020, arXiv:1909.13719

As in the papers there are 14 operations: identity, shear and translate (x and y), rotate, brightness, colour,
contrast, sharpness, posterize, solarize, autocontrast, equalize. Translations are up to 0.45 of the side: the
papers' pixels would move an image of 28 pixels out of sight. Moved pixels are bilinear.

A batch goes through three passes whatever its images drew: tables, blends, one affine map. An image that drew
an operation of another pass is left as it is. So there is no loop over samples, and no wait for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from foldserve.training.augmentation import border, colour

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from foldserve.training.augmentation.border import Border

(
    _IDENTITY,
    _SHEAR_X,
    _SHEAR_Y,
    _TRANSLATE_X,
    _TRANSLATE_Y,
    _ROTATE,
    _BRIGHTNESS,
    _COLOUR,
    _CONTRAST,
    _SHARPNESS,
    _POSTERIZE,
    _SOLARIZE,
    _AUTOCONTRAST,
    _EQUALIZE,
) = range(14)
OPERATION_COUNT = 14

_TRANSLATE = 0.45  # 150 of 331 pixels, RandAugment's largest
_MAGNITUDES = 30  # RandAugment's scale of strengths, 0 to 30


@dataclass(frozen=True)
class _Ranges:
    """The strengths at the end of the scale; factors are 1 plus or minus ``factor``."""

    shear: float
    rotate_degrees: float
    factor: float
    fewest_bits: int


_WIDE = _Ranges(shear=0.99, rotate_degrees=135.0, factor=0.99, fewest_bits=2)
_RAND = _Ranges(shear=0.3, rotate_degrees=30.0, factor=0.9, fewest_bits=4)


@dataclass(frozen=True)
class RandomPolicy:
    """Applies ``operation_count`` random operations to each image.

    ``magnitude`` is 0 to 30 as RandAugment counts; None draws it for each image, as TrivialAugment does.
    ``border`` is what moved images show of beyond themselves.
    """

    operation_count: int = 1
    magnitude: int | None = None
    border: Border = "mirror"

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return augmented ``images``, uint8 [N, C, H, W] with one or three channels."""
        for _ in range(self.operation_count):
            operations, strengths, signs = self._draw(len(images), generator)
            ranges = _WIDE if self.magnitude is None else _RAND
            images = apply_operations(images, operations, strengths * signs, ranges, self.border)
        return images

    def _draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the operation int64 [N], strength float [N] in 0..1 and sign float [N] of each image."""
        device = generator.device
        operations = torch.randint(OPERATION_COUNT, (count,), generator=generator, device=device)
        strengths = torch.rand(count, generator=generator, device=device)
        if self.magnitude is not None:
            strengths = torch.full_like(strengths, self.magnitude / _MAGNITUDES)
        signs = torch.randint(2, (count,), generator=generator, device=device) * 2.0 - 1.0
        return operations, strengths, signs


def apply_operations(
    images: Tensor,
    operations: Tensor,
    strengths: Tensor,
    ranges: _Ranges = _WIDE,
    beyond: Border = "mirror",
) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: uint8 [N, C, H, W].
        operations: the number of each image's operation, int64 [N].
        strengths: how strongly, float [N] in -1..1; tables take the absolute value.
        ranges: what the ends of that scale stand for.
        beyond: what moved images show of beyond themselves.
    """
    images = _recode(images, operations, strengths.abs(), ranges)
    images = _blend(images, operations, strengths, ranges)
    return _move(images, operations, strengths, ranges, beyond)


def _recode(images: Tensor, operations: Tensor, strengths: Tensor, ranges: _Ranges) -> Tensor:
    bits = 8 - (strengths * (8 - ranges.fewest_bits)).round()
    thresholds = 256 * (1 - strengths)
    chosen = colour.posterize_tables(images, bits)
    for operation, tables in (
        (_SOLARIZE, colour.solarize_tables(images, thresholds)),
        (_AUTOCONTRAST, colour.autocontrast_tables(images)),
        (_EQUALIZE, colour.equalize_tables(images)),
    ):
        chosen = torch.where((operations == operation).view(-1, 1, 1), tables, chosen)
    recoded = colour.look_up(chosen.contiguous(), images)
    return torch.where((operations >= _POSTERIZE).view(-1, 1, 1, 1), recoded, images)


def _blend(images: Tensor, operations: Tensor, strengths: Tensor, ranges: _Ranges) -> Tensor:
    plain = torch.zeros_like(images)
    for operation, plainer in (
        (_COLOUR, colour.grey(images)),
        (_CONTRAST, colour.mean_grey(images)),
        (_SHARPNESS, colour.smooth(images)),
    ):
        plain = torch.where((operations == operation).view(-1, 1, 1, 1), plainer, plain)
    is_blend = (operations >= _BRIGHTNESS) & (operations <= _SHARPNESS)
    mixed = colour.blend(plain, images, 1 + strengths * ranges.factor)
    return torch.where(is_blend.view(-1, 1, 1, 1), mixed, images)


def _move(images: Tensor, operations: Tensor, strengths: Tensor, ranges: _Ranges, beyond: Border) -> Tensor:
    """Shear, shift or turn about the centre, by one affine map per image."""
    height, width = images.shape[2:]

    def of(operation: int, scale: float) -> Tensor:
        return torch.where(operations == operation, strengths * scale, 0.0)

    angle = torch.deg2rad(of(_ROTATE, ranges.rotate_degrees))
    cosine, sine = angle.cos(), angle.sin()
    # In coordinates of -1 to 1, which are longer along the longer side: a turn and a shear are in pixels.
    across = torch.stack(
        [cosine, (of(_SHEAR_X, ranges.shear) - sine) * height / width, of(_TRANSLATE_X, 2 * _TRANSLATE)],
        dim=1,
    )
    down = torch.stack(
        [(of(_SHEAR_Y, ranges.shear) + sine) * width / height, cosine, of(_TRANSLATE_Y, 2 * _TRANSLATE)],
        dim=1,
    )
    places = F.affine_grid(
        torch.stack([across, down], dim=1), [len(images), 1, height, width], align_corners=False
    )
    moved = border.sample(images.float(), places, beyond)
    is_moved = (operations >= _SHEAR_X) & (operations <= _ROTATE)
    # The identity map would round, too, but only by what bilinear sums do: it is left out for exactness.
    return torch.where(is_moved.view(-1, 1, 1, 1), moved.round().clamp(0, 255).to(torch.uint8), images)
