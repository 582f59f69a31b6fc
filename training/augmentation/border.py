"""Continues images beyond their borders, for crops and moves that reach there.

mirror  the image, mirrored at its border as often as it takes; the outermost pixels come twice. It is what
        ``fit="pad"`` does to pictures of another shape (`foldserve.imaging`).
black   zeros: for images of things on black, such as handwritten digits
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

Border = Literal["mirror", "black"]


def add_border(images: Tensor, padding: int, border: Border) -> Tensor:
    """Return ``images`` [N, C, H, W] of any type with ``padding`` pixels more on each side."""
    if border == "black":
        return F.pad(images, (padding, padding, padding, padding))
    # Not F.pad, which takes neither bytes nor a border wider than the image.
    height, width = images.shape[2:]
    rows, columns = (_mirrored(side, padding, images.device) for side in (height, width))
    return images.index_select(2, rows).index_select(3, columns)


def sample(images: Tensor, places: Tensor, border: Border) -> Tensor:
    """Return the values of ``images`` float [N, C, H, W] at ``places`` [N, H, W, 2], bilinearly.

    ``places`` are in -1..1 from border to border, as of `torch.nn.functional.affine_grid` with
    ``align_corners=False``.
    """
    mode = "zeros" if border == "black" else "reflection"
    return F.grid_sample(images, places, padding_mode=mode, align_corners=False)


def _mirrored(side: int, padding: int, device: torch.device) -> Tensor:
    """Return which of ``side`` rows each row of the padded image shows, int64 [side + 2 * padding]."""
    place = torch.arange(-padding, side + padding, device=device) % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)
