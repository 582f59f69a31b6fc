"""Freezes parts of a network: their weights do not change, and their batch norm stays in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _NormBase

from foldserve.text import join_first
from foldserve.training.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


@dataclass(frozen=True)
class Frozen:
    """Names of the frozen parameters, and the frozen layers that keep running statistics."""

    parameters: frozenset[str] = frozenset()
    norms: tuple[nn.Module, ...] = ()

    def keep_in_evaluation(self) -> None:
        """Put the frozen norms back into evaluation mode, which ``train()`` of the network ended."""
        for norm in self.norms:
            norm.eval()


def freeze(network: nn.Module, patterns: Sequence[str]) -> Frozen:
    """Freeze the parameters of ``network`` whose name, or a layer around them, matches a pattern.

    Patterns are those of the shell: ``features.0`` names a layer and all in it, ``*.norm`` every layer norm.

    Raises:
        ModelError: a pattern matches nothing, or nothing is left to train.
    """
    if not patterns:
        return Frozen()
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in names):
            parts = [name for name, _ in network.named_children()]
            raise ModelError(
                f"--freeze {pattern} matches no weight of the network; its parts are {', '.join(parts)}, its "
                f"weights {join_first(names)}"
            )
    frozen = frozenset(name for name in names if _matches(name, patterns))
    if len(frozen) == len(names):
        raise ModelError(f"--freeze {' '.join(patterns)} leaves nothing to train; leave the last layer out")
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    norms = [
        module
        for name, module in network.named_modules()
        if isinstance(module, _NormBase) and _is_frozen(name, module, frozen, patterns)
    ]
    return Frozen(frozen, tuple(norms))


def _is_frozen(name: str, module: nn.Module, frozen: frozenset[str], patterns: Sequence[str]) -> bool:
    own = {f"{name}.{parameter}" if name else parameter for parameter, _ in module.named_parameters()}
    return _matches(name, patterns) or (bool(own) and own <= frozen)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of ``patterns`` matches ``name`` or a layer that it lies in."""
    parts = name.split(".")
    within = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(fnmatchcase(layer, pattern) for layer in within for pattern in patterns)
