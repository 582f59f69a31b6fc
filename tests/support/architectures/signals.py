"""Weights and images under which an answer depends on every layer.

With random statistics alone a deep network answers almost the same to every image, and a wrong fold far below
would not show. So statistics are those of real activations, moved at random, and logits are spread over some
ten units.
"""

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 64
MEAN, STD = (0.45, 0.5, 0.4), (0.25, 0.2, 0.3)


def pictures(count: int, seed: int = 3) -> np.ndarray:
    """Return uint8 [count, 3, 64, 64]: a ramp and a patch in colours of each image's own, and noise."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, SIDE)[None, None, None, :] * generator.uniform(-120, 120, (count, 3, 1, 1))
    image = (
        generator.uniform(40, 210, (count, 3, 1, 1)) + ramp + generator.normal(0, 20, (count, 3, SIDE, SIDE))
    )
    for picture in image:
        top, left = generator.integers(0, SIDE - 24, 2)
        picture[:, top : top + 24, left : left + 24] += generator.uniform(-120, 120, (3, 1, 1))
    return image.clip(0, 255).astype(np.uint8)


def with_signal(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give ``network``'s batch norms random weights and statistics near those of its activations."""
    torch.manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        norm.momentum = 1.0  # the statistics of the one batch below
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(norm.weight) < 0.3, -1, 1))
            norm.bias.normal_(0, 0.3)
    images = normalised(pictures(32))
    with torch.no_grad():
        network.train()(images)
        for norm in norms:
            norm.running_mean += 0.3 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.6, 1.6)
        logits = network.eval()(images)
        last = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
        last.weight.mul_(5 / logits.std(0).mean())
    return network


def normalised(images: np.ndarray) -> Tensor:
    mean, std = torch.tensor(MEAN).reshape(1, 3, 1, 1), torch.tensor(STD).reshape(1, 3, 1, 1)
    return (torch.from_numpy(images).float() / 255 - mean) / std
