"""Computes batch norm over the batches of all processes on the CPU, which torch's SyncBatchNorm cannot.

With sums over all processes, n values per channel, mean m = sum(x) / n and variance v = sum((x - m)^2) / n,
the layer computes gamma (x - m) / sqrt(v + eps) + beta; running averages take v n / (n - 1), as in one
process. The gradient flows through both sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

if TYPE_CHECKING:
    from torch import Tensor


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that standardises by the statistics of all processes together in training."""

    def forward(self, images: Tensor) -> Tensor:
        """Return ``images`` [N, C, H, W] normalised."""
        if not self.training:
            normalised: Tensor = super().forward(images)
            return normalised
        count = torch.tensor(float(images.numel() // images.shape[1]), device=images.device)
        distributed.all_reduce(count)
        values = images.float()  # sums in bf16 would be wrong by percents
        mean = _sum_over_all(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum_over_all(centred.square().sum(dim=(0, 2, 3))) / count
        self._update_running(mean.detach(), (variance * count / (count - 1)).detach())
        scale = self.weight / torch.sqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Return ``network`` with batch norm over all processes; weights and their names do not change."""
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return synchronised
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d and child.affine and child.track_running_stats and child.momentum:
            setattr(network, name, _converted(child))
        else:
            synchronise_batch_norm(child, device)
    return network


class _SumOverAll(torch.autograd.Function):
    """Sums over all processes; the gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _sum_over_all(value: Tensor) -> Tensor:
    total: Tensor = _SumOverAll.apply(value)  # type: ignore[no-untyped-call]  # torch's own
    return total


def _converted(layer: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    converted = GlobalBatchNorm2d(layer.num_features, eps=layer.eps, momentum=layer.momentum)
    converted.load_state_dict(layer.state_dict())
    return converted
