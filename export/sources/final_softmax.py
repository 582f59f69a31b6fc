"""A network that ends in a softmax answers logits once that last step is left out.

    softmax(logits) = softmax(log_softmax(logits)) = probabilities

Left out, and put back behind the logits by `export.finish`, it changes no probability; left in, there would
be two, and callers would no longer see what the network answers. It is left out only where changes of shape
alone come behind it, and the network's own answers are then the softmax of the logits.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from export.errors import SourceError
from export.probabilities import answers_softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from training.models import Normalized

_SEED = 3
_BATCH_SIZE = 8  # more than one, or a softmax over the images would go unseen

# PyTorch's names of it, as a function or a tensor's method.
_SOFTMAX = {"softmax", "log_softmax", "special_softmax", "special_log_softmax"}
# What may follow it: the same numbers in another shape or type. `__get__` is an attribute, such as a shape.
_RESHAPING = {
    *("reshape", "view", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim"),
    *("contiguous", "clone", "detach", "size", "dim", "numel", "__getitem__", "__get__"),
    *("float", "double", "to", "type"),
}


def leave_out_softmax(module: Normalized, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Let ``module``, in eval mode, answer logits where it ends in a softmax; return remarks.

    Its network is replaced by another with the same weights; the network itself stays as it is.

    Raises:
        SourceError: it ends in a softmax that is not over the classes of each image.
    """
    noise = np.random.default_rng(_SEED).integers(0, 256, (_BATCH_SIZE, *image_shape), dtype=np.uint8)
    pixels = torch.from_numpy(noise)
    calls = _Calls()
    try:
        with torch.inference_mode(), calls:
            given = module(pixels)
    except Exception:  # the network's own; `check_answers` says it well
        return ()
    if not isinstance(given, torch.Tensor) or not calls.end_in_softmax():
        return ()
    module.network = _without_softmax(module.network, calls.softmax_count())
    with torch.inference_mode():
        logits = module(pixels)
    if not answers_softmax(given.numpy(), logits.numpy()):
        raise SourceError(
            f"the network ends in a {calls.last_softmax()} that is not one over the classes of each image "
            f"(it answers {list(given.shape)} for {len(noise)} images): let its factory return a network "
            "that answers logits [N, classes]"
        )
    return (f"it ends in a {calls.last_softmax()}, which is left out: logits are what goes into that",)


class _Calls(TorchFunctionMode):
    """Notes the names of PyTorch's functions as they are called."""

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
    """Hands on the input of the softmax that is called as the ``ordinal``-th, counted from 1."""

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
    """Return ``network``, its weights shared, with a class that does without its ``ordinal``-th softmax."""
    kind = type(network)

    @functools.wraps(kind.forward)  # tracing asks for its signature
    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        with _WithoutCall(ordinal):
            return kind.forward(self, *inputs, **named)

    other = copy.copy(network)
    other.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return other
