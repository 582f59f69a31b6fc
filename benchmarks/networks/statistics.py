"""Gives a fresh network weights and statistics that let every layer show in the logits.

No trained weights can be fetched, and fresh ones prove little: batch norm is the identity, branches begin
with zeros, logits are all but equal. So, seeded:

both        what is constant when fresh (scales, biases, layer scales, zeros) becomes random
random      running means and variances are random
calibrated  they are the means and variances of the activations on images, as training leaves them; StarReLU's
            bias is the negative mean of what it is added to; the last layer is shifted and scaled until the
            logits reach `TRAINED_LOGIT`, as those of trained classifiers

StarReLU (arXiv:2210.13452), s relu(x)^2 + b, is derived with b = -s E[relu(x)^2], so that its mean is 0;
fresh, b is 0. With b = 0.4, as other constants get it, the same number outweighs the image in every block of
CAFormer: at the end logits of 0.6 differ from image to image by 0.0004, and what the last layer then
magnifies is float32's rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.networks.images import draw_images, normalised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

STATISTICS = ("calibrated", "random")
# The largest logit of the median image; one that is unlike the others may reach three times as far.
TRAINED_LOGIT = 10.0
# The logits are scaled on images that the statistics were not taken from: on those they are smaller.
_CALIBRATION_SEED, _SCALING_SEED = 20, 21
# Logits of random statistics beyond these are scaled to 1: the branches of a deep network add up without
# bounds.
_LEAST_LOGIT, _MOST_LOGIT = 1e-2, 30.0


def give_statistics(network: nn.Module, kind: str, side: int) -> float:
    """Change the weights of a network in eval mode, for images [3, side, side], in place.

    Returns how far its logits differ from image to image, relative to their size, before the last layer is
    changed. If that is next to nothing, the image does not matter, and scaled logits show rounding alone.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        _vary_constants(network)
        if kind == "random":
            _randomise_statistics(network)
        else:
            _calibrate_statistics(network, side)
        images = _draw(side, _SCALING_SEED)
        logits = network(images)
        largest = float(logits.abs().max())
        varying = _most(logits - logits.median(0).values) / max(_most(logits), 1e-30)
        if kind == "calibrated":
            _scale_last_layer(network, images, logits)
        elif math.isfinite(largest) and not _LEAST_LOGIT < largest < _MOST_LOGIT:
            for layer in _last_layers(network, logits.shape[1]):
                _scale(layer, 1 / largest, None)
    return varying


def _vary_constants(network: nn.Module) -> None:
    norms = {
        id(module.weight)
        for module in network.modules()
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter)
    }
    star_biases = {id(module.bias) for module in _star_relus(network)}
    for weights in network.parameters():
        value = float(weights.flatten()[0])
        if not bool((weights == value).all()):
            continue
        if id(weights) in norms or (value != 0 and weights.numel() > 1):
            # Scales, below 1 for the most part, as training leaves them: with larger ones each branch doubles
            # what the blocks before it were off by, and after fifty blocks float32 is worth nothing. Layer
            # scales begin at 1e-6, and grow by training to the order of 0.1.
            weights.uniform_(0.3, 1.0).mul_(1.0 if id(weights) in norms else max(abs(value), 0.2))
        elif id(weights) in star_biases:
            weights.normal_(0, 0.02)  # calibrated, its size follows from what it is added to
        elif value == 0 and weights.numel() == 1:
            weights.fill_(0.4)  # the gain of a branch
        elif value == 0:
            weights.normal_(0, 0.1 if weights.ndim == 1 else 0.02)


def _star_relus(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the activations s relu(x)^2 + b that have a bias."""
    for module in network.modules():
        if type(module).__name__ == "StarReLU" and isinstance(module.bias, nn.Parameter):
            yield module


def _with_statistics(network: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    for module in network.modules():
        buffers = dict(module.named_buffers(recurse=False))
        if buffers.get("running_var") is not None:
            yield module, buffers


def _randomise_statistics(network: nn.Module) -> None:
    for _, buffers in _with_statistics(network):
        buffers["running_var"].uniform_(0.5, 2.0)
        if "running_mean" in buffers:
            buffers["running_mean"].normal_(0, 0.3)


def _calibrate_statistics(network: nn.Module, side: int) -> None:
    """Let the layers with running statistics, and nothing else, see one batch in training mode."""
    kept = []
    for module, _ in _with_statistics(network):
        kept.append((module, module.momentum))
        # None is the plain average in batch norm; other layers know only momenta.
        module.momentum = None if isinstance(module, _BatchNorm) else 1.0  # type: ignore[assignment]
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
        module.training = True  # not of what it holds: its dropout stays off
    hooks = [module.register_forward_hook(_centre) for module in _star_relus(network)]
    network(_draw(side, _CALIBRATION_SEED))
    for hook in hooks:
        hook.remove()
    for module, momentum in kept:
        module.training, module.momentum = False, momentum


def _centre(module: nn.Module, _: object, output: Tensor) -> Tensor:
    """Give a StarReLU the bias with which the mean of ``output`` is 0; return what it outputs then."""
    bias = module.bias
    assert isinstance(bias, nn.Parameter)
    mean = output.mean()
    bias.sub_(mean)
    return output - mean


def _draw(side: int, seed: int) -> Tensor:
    count = 64 if side <= 128 else 24
    return torch.from_numpy(normalised(draw_images(count, side, seed))).float()


def _last_layers(network: nn.Module, class_count: int) -> list[nn.Linear | nn.Conv2d]:
    """Return the layers that answer a number a class: one, or one of each head."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == class_count
    ]


def _scale_last_layer(network: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Shift and scale the logits to median 0 and `TRAINED_LOGIT`; scale them only if something follows.

    Not to mean 0: one image whose logits are a hundred times as large would decide the mean, and with it the
    logits of all others, which would then be all alike.
    """
    layers = _last_layers(network, logits.shape[1])
    kept = {key: value.clone() for layer in layers for key, value in _named(layer)}
    middle = logits.median(0).values
    for shift in (middle, torch.zeros_like(middle)):
        factor = TRAINED_LOGIT / _most(logits - shift)
        for layer in layers:
            _scale(layer, factor, shift)
        reached = _most(network(images))
        if TRAINED_LOGIT / 2 < reached < TRAINED_LOGIT * 2:
            return
        for layer in layers:
            for key, value in _named(layer):
                value.copy_(kept[key])


def _most(logits: Tensor) -> float:
    return float(logits.abs().amax(1).median())


def _named(layer: nn.Module) -> list[tuple[tuple[int, str], Tensor]]:
    return [((id(layer), name), weights) for name, weights in layer.named_parameters()]


def _scale(layer: nn.Linear | nn.Conv2d, factor: float, shift: Tensor | None) -> None:
    layer.weight.mul_(factor)
    if layer.bias is not None:
        layer.bias.sub_(0 if shift is None else shift).mul_(factor)
