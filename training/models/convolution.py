"""Computes the weight gradient of convolutions on small maps as a convolution, which is faster on CPUs.

The gradient of a weight is the input convolved with the gradient of the output, if batch and channels trade
places in both: for stride 1, maps [N, I, H, W] and a gradient [N, O, H', W'] give [I, O, kernel, kernel].
oneDNN's own kernel for it takes, in bf16 on maps of a few positions, several times as long as the forward
pass: of 256 channels on 4x4 maps and 128 images, 16.3 ms and 2.3 ms on one core with AMX; this takes 3.8 ms.
On larger maps oneDNN's is faster. A training step of LeNet takes 4 % less CPU time, one of AlexNet 3 %, and
14 % at twice its width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

if TYPE_CHECKING:
    from torch import Tensor

# Measured with 3x3 kernels on one core: faster up to 5x5 maps with AMX and without, with AMX slower at 7x7.
_MOST_POSITIONS = 25
_LEAST_CHANNELS = 32


class Conv2d(nn.Conv2d):
    """PyTorch's convolution; faster in bf16 training on a CPU, on maps of at most 25 positions."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the convolution of ``maps`` [N, C, H, W]."""
        if not self._is_exchanged(maps):
            return super().forward(maps)
        # As autocast does it: the gradients of maps and weight come back in their own formats.
        output: Tensor = _Exchanged.apply(  # type: ignore[no-untyped-call]  # torch's own
            maps.to(torch.bfloat16), self.weight.to(torch.bfloat16), self.padding
        )
        return output if self.bias is None else output + self.bias.to(torch.bfloat16)[:, None, None]

    def _is_exchanged(self, maps: Tensor) -> bool:
        return (
            self.training
            and maps.device.type == "cpu"
            and maps.shape[-2] * maps.shape[-1] <= _MOST_POSITIONS
            and self.in_channels >= _LEAST_CHANNELS
            and self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        )


class _Exchanged(torch.autograd.Function):
    """A convolution of stride 1 whose weight gradient is a convolution, too."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.padding = padding
        return F.conv2d(maps, weight, padding=padding)

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        maps, weight = ctx.saved_tensors
        maps_gradient = None
        if ctx.needs_input_grad[0]:
            maps_gradient = conv2d_input(  # type: ignore[no-untyped-call]  # torch's own
                maps.shape, weight, output_gradient, padding=ctx.padding
            )
        weight_gradient = F.conv2d(_exchanged(maps), _exchanged(output_gradient), padding=ctx.padding)
        return maps_gradient, weight_gradient.transpose(0, 1), None


def _exchanged(maps: Tensor) -> Tensor:
    return maps.transpose(0, 1).contiguous(memory_format=torch.channels_last)
