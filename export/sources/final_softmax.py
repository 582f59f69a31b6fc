"""Takes the final softmax or sigmoid off a PyTorch network, so that it outputs logits.

    softmax(logits) = softmax(log_softmax(logits)) = probabilities
    softmax([0, logit]) = [1 - sigmoid(logit), sigmoid(logit)]

`foldserve.export.graph.serialize` appends a softmax to every network. Left in, the network's own would be
applied too, and callers would get other probabilities. It is taken off only if nothing but changes of shape
or type follow it, and the network's original output is the softmax (or its logarithm) of the logits.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from foldserve.export.errors import SourceError
from foldserve.export.sources.calls import Calls, Ending, find_choice, find_sigmoid, find_softmax
from foldserve.export.verification.probabilities import BINARY, is_sigmoid_of, is_softmax_of, no_logits_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foldserve.training.models import Normalized

_SEED = 3
_BATCH_SIZE = 8  # more than one, or a softmax over the images would not be noticed


def leave_out_softmax(module: Normalized, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Remove the softmax that ends ``module``, in eval mode, if there is one; return a remark on it.

    ``module`` gets a copy of its network with the same weights; the original network is not changed.

    Raises:
        SourceError: it ends in a softmax over something else than the classes of each image, or in a choice
            of classes without their scores.
    """
    pixels = _noise(image_shape)
    given, calls = _record(module, pixels)
    if given is None:
        return ()
    if choice := find_choice(calls):
        raise SourceError(no_logits_text(f"choice of classes ({choice})"))
    ending = find_softmax(calls)
    if ending is None:
        return ()
    logits = _leave_out(module, ending, pixels)
    if not is_softmax_of(given.numpy(), logits.numpy()):
        raise SourceError(
            f"the network ends in a {ending.name} that is not over the classes of each image (its "
            f"output is {list(given.shape)} for {len(pixels)} images); let its factory return a network that "
            "outputs logits [N, classes]"
        )
    return (f"removed the final {ending.name}: its input is used as the logits",)


def as_two_classes(module: Normalized, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Let ``module`` output [0, z] if it outputs one logit z, or the sigmoid of one; return remarks on it.

    ``module`` gets a copy of its network, as above. The output may be [N] or [N, 1].

    Raises:
        SourceError: it ends in a sigmoid that is not that of its logit.
    """
    pixels = _noise(image_shape)
    given, calls = _record(module, pixels)
    if given is None or given.numel() != len(pixels) or not given.is_floating_point():
        return ()
    remarks: tuple[str, ...] = ()
    if (ending := find_sigmoid(calls)) is not None:
        logits = _leave_out(module, ending, pixels)
        if not is_sigmoid_of(given.numpy(), logits.numpy()):
            raise SourceError(no_logits_text("sigmoid"))
        remarks = (f"removed the final {ending.name}: its input is used as the logit",)
    module.network = _replaced(module.network, lambda forward: lambda *inputs: _with_zero(forward(*inputs)))
    return (*remarks, BINARY)


def _with_zero(logits: Tensor) -> Tensor:
    """Return [N, 2], 0 before each of ``logits`` [N] or [N, 1, ...]."""
    rows = logits.unsqueeze(1) if logits.ndim == 1 else logits.flatten(1)
    return F.pad(rows, (1, 0))


def _noise(image_shape: tuple[int, int, int]) -> Tensor:
    noise = np.random.default_rng(_SEED).integers(0, 256, (_BATCH_SIZE, *image_shape), dtype=np.uint8)
    return torch.from_numpy(noise)


def _record(module: Normalized, pixels: Tensor) -> tuple[Tensor | None, Calls]:
    """Return what ``module`` outputs, and the calls of its network; None if it fails or is no tensor."""
    calls = Calls()

    def recorded(forward: Callable[..., Any]) -> Callable[..., Any]:
        def record(*inputs: Any) -> Any:
            with calls:
                calls.output = forward(*inputs)
            return calls.output

        return record

    network = module.network
    try:
        module.network = _replaced(network, recorded)
        with torch.inference_mode():
            given = module(pixels)
    except Exception:  # raised by the network; `check_output` reports it
        return None, calls
    finally:
        module.network = network
    return (given if isinstance(given, torch.Tensor) else None), calls


def _leave_out(module: Normalized, ending: Ending, pixels: Tensor) -> Tensor:
    """Take ``ending`` off the network of ``module``, and return what it outputs then."""

    def without(forward: Callable[..., Any]) -> Callable[..., Any]:
        def compute(*inputs: Any) -> Any:
            with _WithoutEnding(ending):
                return forward(*inputs)

        return compute

    module.network = _replaced(module.network, without)
    with torch.inference_mode():
        logits: Tensor = module(pixels)
    return logits


class _WithoutEnding(TorchFunctionMode):
    """Lets the last call of an ending return what went into its first one."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self._ending = ending
        self._counts: dict[str, int] = {}
        self._logits: Any = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        self._counts[name] = self._counts.get(name, 0) + 1
        place = (name, self._counts[name])
        if place == self._ending.first:
            self._logits = args[0] if args else kwargs["input"]
            if name.endswith("_"):
                self._logits = self._logits.clone()  # the call overwrites it
        if place == self._ending.last:
            return self._logits
        return func(*args, **kwargs)


def _replaced(network: nn.Module, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> nn.Module:
    """Return a copy of ``network``, sharing its weights, whose ``forward`` is what ``change`` makes of it."""
    kind = type(network)

    @functools.wraps(kind.forward)  # tracing asks for its signature
    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        return change(functools.partial(kind.forward, self, **named))(*inputs)

    other = copy.copy(network)
    other.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return other
