"""Judges logits by the float64 network, on images that no export saw.

This is independent of the export's own checks: other images, another reference (the packages' own module with
doubles, from its state dict), another bound.

    right: error <= 4 x PyTorch's own float32 error + 2e-6 x the largest logit

Both errors are maxima over the same 32 images, of float32 sums in different orders; over many networks the
ratio is near 1. 2e-6 is 16 units in the last place: PyTorch's error may be close to 0 by chance. A wrong
fold costs hundreds of times as much.

PyTorch's error is the largest of four networks: the one given, and three whose weights and images are moved
by at most one unit in the last place, as rounding moves them. Some networks are sensitive on a few images (in
timm's eca_halonext26ts the worst image's error is 200 times the median's), and there the error of a single
computation is large or small by luck.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.networks.images import draw_images, normalised

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

JUDGE_COUNT = 32
CHUNK = 8  # images at once: float64 convolutions hold their columns
_JUDGE_SEED = 77
_FACTOR = 4.0
_FRACTION = 2e-6
_NEIGHBOURS = 3
_HALF_UNIT = 2.0**-24  # of float32, relative


@dataclass(frozen=True)
class Judge:
    """Images [N, 3, side, side], the network's logits in float64, and the error of PyTorch's float32."""

    images: NDArray[np.uint8]
    exact: NDArray[np.float64]
    pytorch_error: float

    @property
    def largest(self) -> float:
        """The largest logit."""
        return float(np.abs(self.exact).max())

    @property
    def allowed(self) -> float:
        """The error up to which logits are right."""
        return _FACTOR * self.pytorch_error + _FRACTION * self.largest

    def error(self, logits: NDArray[np.float32]) -> float:
        """Return the largest error of ``logits``; infinite if they are of another shape or not finite."""
        if logits.shape != self.exact.shape or not np.isfinite(logits).all():
            return float("inf")
        return float(np.abs(logits - self.exact).max())

    def verdict(self, error: float) -> str:
        """Return "right" or "wrong"."""
        return "right" if error <= self.allowed else "wrong"


def make_judge(network: nn.Module, side: int) -> Judge:
    """Compute a network in eval mode in float64 and in float32.

    Raises:
        ValueError: its logits are not finite.
    """
    images = draw_images(JUDGE_COUNT, side, _JUDGE_SEED)
    inputs = torch.from_numpy(normalised(images))
    rounded = in_chunks(partial(_answer, network), inputs.float())
    exact = _exact(network, inputs)
    if not np.isfinite(exact).all():
        raise ValueError("the network's logits are not finite")
    error = np.abs(rounded - exact).max()
    for seed in range(_NEIGHBOURS):
        random = torch.Generator().manual_seed(seed)
        neighbour = _moved(network, random)
        near = in_chunks(partial(_answer, neighbour), _move(inputs.float(), random))
        error = max(error, np.abs(near - exact).max())
    return Judge(images, exact, float(error))


def in_chunks(
    compute: Callable[[torch.Tensor], NDArray[np.generic]], inputs: torch.Tensor
) -> NDArray[np.float64]:
    """Return ``compute`` of ``inputs``, `CHUNK` images at a time."""
    parts = [compute(inputs[start : start + CHUNK]) for start in range(0, len(inputs), CHUNK)]
    return np.concatenate(parts).astype(np.float64)


def _moved(network: nn.Module, random: torch.Generator) -> nn.Module:
    """Return a copy whose weights are moved by at most one unit in the last place."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weights in copied.parameters():
            weights.copy_(_move(weights, random))
    return copied


def _move(values: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    factors = 1 + (2 * torch.rand(values.shape, generator=random, dtype=torch.float64) - 1) * _HALF_UNIT
    return (values.double() * factors).float()


def _exact(network: nn.Module, inputs: torch.Tensor) -> NDArray[np.float64]:
    doubled = copy.deepcopy(network).double()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for tensors that the network makes as it runs
    try:
        return in_chunks(lambda chunk: _answer(doubled, chunk), inputs)
    finally:
        torch.set_default_dtype(default)


def _answer(network: nn.Module, inputs: torch.Tensor) -> NDArray[np.generic]:
    with torch.inference_mode():
        logits: NDArray[np.generic] = network(inputs).numpy()
    return logits
