"""Folds batch norm into the weights next to it: the arithmetic, on arrays.

In eval mode batch norm is a fixed affine map of each channel,

    y = gamma * (x - m) / sqrt(v + eps) + beta  =  scale * x + shift,
    scale = gamma / sqrt(v + eps),    shift = beta - m * scale,

with running mean m and variance v. After a convolution (or linear layer) x = W * u + b it folds into the
weights exactly, since the convolution is linear and the map is constant over space:

    y = scale * (W * u + b) + shift  =  (scale W) * u + (scale b + shift)        scale along W's outputs.

Before a convolution u = W * y + b:

    u = W * (scale x + shift) + b  =  (W scale) * x + (b + sum W shift)          scale along W's inputs,

but only if every tap of the kernel always meets a y: a zero-padded border holds 0, not ``shift``, so with
padding this is exact only for shift = 0. The same holds for a transposed convolution, whose taps overlap
unevenly.

Two affine maps in a row are one: t (s x + a) + b = (t s) x + (t a + b). Everything here is float64; the
caller rounds once. The layouts of the different operators share one view [groups, out/group, in/group, taps].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Layout = Literal["conv", "conv_transpose", "gemm", "gemm_transposed"]


@dataclass(frozen=True)
class ChannelAffine:
    """``scale * x + shift`` per channel, both float64 [C]."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def keeps_zero(self) -> bool:
        """Whether 0 maps to 0, so that zero padding may be applied before or after the map."""
        return not self.shift.any()

    @property
    def linear(self) -> ChannelAffine:
        """The map without its shift."""
        return ChannelAffine(self.scale, np.zeros_like(self.shift))

    def part(self, channels: slice) -> ChannelAffine:
        """Return the map of some of the channels."""
        return ChannelAffine(self.scale[channels], self.shift[channels])

    def then(self, later: ChannelAffine) -> ChannelAffine:
        """Return the composition: this map, then ``later``."""
        return ChannelAffine(later.scale * self.scale, later.scale * self.shift + later.shift)


def batch_norm_affine(
    *,
    gamma: NDArray[np.float64],
    beta: NDArray[np.float64],
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    epsilon: float,
) -> ChannelAffine:
    """Return batch norm in eval mode, with these parameters, all [C], as an affine map."""
    scale = gamma / np.sqrt(variance + epsilon)
    return ChannelAffine(scale, beta - mean * scale)


def fold_after(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    affine: ChannelAffine,
    *,
    layout: Layout,
    groups: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight and bias [out] of the layer followed by ``affine``, a map of its outputs."""
    folded = weight.copy()
    taps = kernel_view(folded, layout, groups)
    taps *= affine.scale.reshape(groups, -1, 1, 1)
    return folded, bias * affine.scale + affine.shift


def fold_before(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    affine: ChannelAffine,
    *,
    layout: Layout,
    groups: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight and bias [out] of the layer preceded by ``affine``, a map of its inputs.

    The caller ensures that the borders allow it: no padding, or ``affine.keeps_zero``.
    """
    folded = weight.copy()
    taps = kernel_view(folded, layout, groups)
    shift = (taps * affine.shift.reshape(groups, 1, -1, 1)).sum(axis=(2, 3)).reshape(-1)
    taps *= affine.scale.reshape(groups, 1, -1, 1)
    return folded, bias + shift


def kernel_view(weight: NDArray[np.float64], layout: Layout, groups: int) -> NDArray[np.float64]:
    """Return a view of a contiguous ``weight`` as [groups, out/group, in/group, taps].

    Writing to the view changes ``weight``. Stored layouts: conv [out, in/group, ...], conv_transpose
    [in, out/group, ...], gemm [in, out], gemm_transposed [out, in] (torch's Linear).
    """
    if layout in ("conv", "gemm_transposed"):
        out, inner = weight.shape[:2]
        return weight.reshape(groups, out // groups, inner, -1)
    inner, out = weight.shape[:2]
    return weight.reshape(groups, inner // groups, out, -1).transpose(0, 2, 1, 3)
