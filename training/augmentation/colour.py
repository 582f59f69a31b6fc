"""Changes the colours of whole batches, each image by its own strength, as Pillow's operations do.

All are functions of uint8 images [N, C, H, W] with one or three channels, and return uint8. They are of two
kinds: `blend` mixes an image with a plainer version of itself (Haeberli and Voorhies 1994, "Image processing
by interpolation and extrapolation"), and `look_up` replaces each value by its entry in a table.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Rec. 601 luma in 16 bits, as Pillow converts RGB to L.
_LUMA = (19595, 38470, 7471)
_LEVELS = 256


def grey(images: Tensor) -> Tensor:
    """Return the luma of ``images``, uint8 [N, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    return (((images.int() * weights).sum(dim=1, keepdim=True) + 0x8000) >> 16).to(torch.uint8)


def mean_grey(images: Tensor) -> Tensor:
    """Return the mean luma of each image, uint8 [N, 1, 1, 1]: an image without contrast."""
    return (grey(images).double().mean(dim=(2, 3), keepdim=True) + 0.5).floor().to(torch.uint8)


def smooth(images: Tensor) -> Tensor:
    """Return ``images`` smoothed by a 3x3 filter that weighs the middle five times; borders are unchanged."""
    if min(images.shape[2:]) < 3:
        return images
    count, channels, height, width = images.shape
    kernel = torch.ones(1, 1, 3, 3, device=images.device)
    kernel[0, 0, 1, 1] = 5
    planes = images.reshape(count * channels, 1, height, width).float()
    inner = (F.conv2d(planes, kernel) / 13 + 0.5).floor().clamp(0, 255).to(torch.uint8)
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = inner.view(count, channels, height - 2, width - 2)
    return smoothed


def blend(plain: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Return ``plain + factors * (images - plain)``: 0 is ``plain``, 1 ``images``, above 1 beyond it.

    ``plain`` broadcasts to ``images``; ``factors`` is float [N].
    """
    mixed = torch.lerp(plain.float(), images.float(), factors.view(-1, 1, 1, 1).float())
    return mixed.clamp(0, 255).to(torch.uint8)


def look_up(tables: Tensor, images: Tensor) -> Tensor:
    """Return ``images`` with each value replaced by its entry in ``tables``, uint8 [N, C, 256]."""
    places = images.flatten(2).long()
    return torch.gather(tables, 2, places).view_as(images)


def posterize_tables(images: Tensor, bits: Tensor) -> Tensor:
    """Return tables [N, C, 256] that keep the upper ``bits``, int [N], of each value."""
    mask = (0xFF00 >> bits.int()) & 0xFF
    return _for_channels(_values(images) & mask.view(-1, 1, 1), images)


def solarize_tables(images: Tensor, thresholds: Tensor) -> Tensor:
    """Return tables [N, C, 256] that invert the values from ``thresholds``, float [N], upwards."""
    values = _values(images)
    return _for_channels(torch.where(values < thresholds.view(-1, 1, 1), values, 255 - values), images)


def autocontrast_tables(images: Tensor) -> Tensor:
    """Return tables [N, C, 256] that stretch each channel's values to 0..255; a flat channel stays."""
    low = images.amin(dim=(2, 3)).double()[:, :, None]
    high = images.amax(dim=(2, 3)).double()[:, :, None]
    values = _values(images).double()
    # Not 255 / ..., which PyTorch computes as 255 times the reciprocal, and so rounds twice.
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)
    stretched = (values * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, _values(images).to(torch.uint8))


def equalize_tables(images: Tensor) -> Tensor:
    """Return tables [N, C, 256] that make each channel's values about equally frequent."""
    count, channels = images.shape[:2]
    values = images.flatten(2).long()
    histograms = torch.zeros(count, channels, _LEVELS, dtype=torch.long, device=images.device)
    histograms.scatter_add_(2, values, torch.ones_like(values))
    # As Pillow: the last level that occurs takes no part in the step.
    highest = images.amax(dim=(2, 3)).long()[:, :, None]
    step = (values.shape[2] - histograms.gather(2, highest)) // 255
    before = histograms.cumsum(dim=2) - histograms
    equalized = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equalized, _values(images)).to(torch.uint8)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of ``images`` by ``turns`` of the circle, float [N]; grey images stay.

    Rotates colours about the grey axis in the YIQ space, so that the luma stays; values are cut to 0..255.
    """
    if images.shape[1] == 1:
        return images
    to_yiq = images.new_tensor(
        [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]],
        dtype=torch.float64,
    )
    angle = 2 * torch.pi * turns.double()
    cosine, sine = angle.cos(), angle.sin()
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
    matrix = (torch.linalg.inv(to_yiq) @ rotation @ to_yiq).float()
    turned = torch.einsum("nij,njhw->nihw", matrix, images.float())
    return (turned.clamp(0, 255) + 0.5).floor().clamp(max=255).to(torch.uint8)


def _values(images: Tensor) -> Tensor:
    """Return the values 0 to 255, int32 [1, 1, 256]."""
    return torch.arange(_LEVELS, dtype=torch.int32, device=images.device).view(1, 1, _LEVELS)


def _for_channels(tables: Tensor, images: Tensor) -> Tensor:
    return tables.to(torch.uint8).expand(len(images), images.shape[1], _LEVELS)
