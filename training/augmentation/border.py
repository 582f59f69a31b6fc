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
    padded = F.pad(images, (padding, padding, padding, padding))
    if border == "mirror":
        # Not by F.pad, which takes neither bytes nor borders wider than the image. Only strips are filled.
        height, width = images.shape[2:]
        inside = padded[:, :, :, padding : padding + width]
        before, behind = _mirrored(height, padding, images.device)
        inside[:, :, :padding] = images.index_select(2, before)
        inside[:, :, padding + height :] = images.index_select(2, behind)
        before, behind = _mirrored(width, padding, images.device)
        padded[:, :, :, :padding] = inside.index_select(3, before)
        padded[:, :, :, padding + width :] = inside.index_select(3, behind)
    return padded


def sample(images: Tensor, places: Tensor, border: Border) -> Tensor:
    """Return the values of ``images`` float [N, C, H, W] at ``places`` [N, H, W, 2], bilinearly.

    ``places`` are in -1..1 from border to border, as of `torch.nn.functional.affine_grid` with
    ``align_corners=False``.
    """
    mode = "zeros" if border == "black" else "reflection"
    return F.grid_sample(images, places, padding_mode=mode, align_corners=False)


def _mirrored(side: int, padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which of ``side`` rows each of the ``padding`` rows before and behind shows, int64 [padding]."""
    place = torch.arange(padding, device=device)
    before, behind = (place - padding) % (2 * side), (side + place) % (2 * side)
    return torch.minimum(before, 2 * side - 1 - before), torch.minimum(behind, 2 * side - 1 - behind)
