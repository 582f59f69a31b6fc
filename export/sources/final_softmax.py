"""Removes the final softmax of a PyTorch network, so that it outputs logits.

    softmax(logits) = softmax(log_softmax(logits)) = probabilities

`foldserve.export.graph.serialize` appends a softmax to every network. Left in, the network's own would be
applied too, and callers would get other probabilities. It is removed only if nothing but changes of shape or
type follow it, and the network's original output is the softmax (or its logarithm) of the logits.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from foldserve.export.errors import SourceError
from foldserve.export.verification.probabilities import is_softmax_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from foldserve.training.models import Normalized

_SEED = 3
_BATCH_SIZE = 8  # more than one, or a softmax over the images would not be noticed

# PyTorch's names for it, as a function or as a tensor method.
_SOFTMAX = {"softmax", "log_softmax", "special_softmax", "special_log_softmax"}
# May follow it: the numbers stay the same. `__get__` reads an attribute, such as the shape.
_RESHAPING = {
    *("reshape", "view", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim"),
    *("contiguous", "clone", "detach", "size", "dim", "numel", "__getitem__", "__get__"),
    *("float", "double", "to", "type"),
}


def leave_out_softmax(module: Normalized, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Make ``module``, in eval mode, output logits if it ends in a softmax; return remarks.

    ``module.network`` is replaced by another with the same weights; the original network is not changed.

    Raises:
        SourceError: it ends in a softmax over something else than the classes of each image.
    """
    noise = np.random.default_rng(_SEED).integers(0, 256, (_BATCH_SIZE, *image_shape), dtype=np.uint8)
    pixels = torch.from_numpy(noise)
    calls = _Calls()
    try:
        with torch.inference_mode(), calls:
            given = module(pixels)
    except Exception:  # raised by the network; `check_output` reports it
        return ()
    if not isinstance(given, torch.Tensor) or not calls.end_in_softmax():
        return ()
    module.network = _without_softmax(module.network, calls.softmax_count())
    with torch.inference_mode():
        logits = module(pixels)
    if not is_softmax_of(given.numpy(), logits.numpy()):
        raise SourceError(
            f"the network ends in a {calls.last_softmax()} that is not over the classes of each image (its "
            f"output is {list(given.shape)} for {len(noise)} images); let its factory return a network that "
            "outputs logits [N, classes]"
        )
    return (f"removed the final {calls.last_softmax()}: its input is used as the logits",)


class _Calls(TorchFunctionMode):
    """Records the names of the PyTorch functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._names.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def end_in_softmax(self) -> bool:
        rest = [name for name in self._names if name not in _RESHAPING]
        return bool(rest) and rest[-1] in _SOFTMAX

    def softmax_count(self) -> int:
        return sum(name in _SOFTMAX for name in self._names)

    def last_softmax(self) -> str:
        return next(name for name in reversed(self._names) if name in _SOFTMAX).removeprefix("special_")


class _WithoutCall(TorchFunctionMode):
    """Replaces the ``ordinal``-th call of a softmax, counted from 1, by its input."""

    def __init__(self, ordinal: int) -> None:
        super().__init__()
        self._left = ordinal

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._left -= func.__name__ in _SOFTMAX
        if func.__name__ in _SOFTMAX and self._left == 0:
            return args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))


def _without_softmax(network: nn.Module, ordinal: int) -> nn.Module:
    """Return a copy of ``network``, sharing its weights, without its ``ordinal``-th call of a softmax."""
    kind = type(network)

    @functools.wraps(kind.forward)  # tracing asks for its signature
    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        with _WithoutCall(ordinal):
            return kind.forward(self, *inputs, **named)

    other = copy.copy(network)
    other.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return other
