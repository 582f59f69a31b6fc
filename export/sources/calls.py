"""Records the functions that a PyTorch network calls, and finds the softmax or sigmoid that ends it.

Written out, a softmax is exp(x) / sum(exp(x)), exp(x) * (1 / sum(exp(x))), exp(x - logsumexp(x)),
exp(log_softmax(x)), or exp(x) normalised to a sum of 1; x may be shifted by each row's largest value. Whether
it is over the classes, the caller has to check by the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

# PyTorch's names for them, as functions or as methods of tensors.
_SOFTMAX = {"softmax", "log_softmax", "special_softmax", "special_log_softmax"}
_LOG_SOFTMAX = {"log_softmax", "special_log_softmax"}
_SIGMOID = {"sigmoid", "sigmoid_", "special_expit"}
_LOG_SIGMOID = {"log_sigmoid", "logsigmoid"}
_LOG = {"log", "log_"}
_EXP = {"exp", "exp_"}
_DIVIDE = {"div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__"}
_MULTIPLY = {"mul", "mul_", "multiply", "__mul__", "__imul__"}
_INVERT = {"reciprocal", "reciprocal_", "__rdiv__", "__rtruediv__"}
_SUBTRACT = {"sub", "sub_", "subtract", "__sub__", "__isub__"}
_CHOICE = {"argmax", "argmin", "topk", "one_hot"}
# May come between: the numbers stay the same. `__get__` reads an attribute, such as the shape.
_RESHAPING = {
    *("reshape", "view", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim"),
    *(
        "contiguous",
        "clone",
        "detach",
        "size",
        "dim",
        "numel",
        "__getitem__",
        "__get__",
        "expand",
        "expand_as",
    ),
    *("float", "double", "to", "type"),
}
_RETURNED_BY = "_foldserve_call"  # attribute of a tensor: which recorder's which call returned it


@dataclass(frozen=True)
class Call:
    """A call of a PyTorch function.

    Attributes:
        name: the function's name.
        ordinal: how many calls of that name there were, with this one.
        inputs: for each tensor that it was given, the number of the call that returned it; -1 for others.
    """

    name: str
    ordinal: int
    inputs: tuple[int, ...]

    @property
    def place(self) -> tuple[str, int]:
        """Name and ordinal, which are the same each time the network is called."""
        return self.name, self.ordinal


@dataclass(frozen=True)
class Ending:
    """What ends a network: the calls from ``first``, whose input are the logits, to ``last``."""

    name: str
    first: tuple[str, int]
    last: tuple[str, int]


class Calls(TorchFunctionMode):
    """Records calls; ``output`` is to be set to what the network returned."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None
        self._calls: list[Call] = []
        # Weights may be returned as they are, and keep what an earlier recording noted on them.
        self._recording = object()
        self._counts: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [entry for entry in tree_leaves((args, kwargs)) if isinstance(entry, torch.Tensor)]
        # Read before the call, which may return what it was given.
        inputs = tuple(self._number(entry) for entry in given)
        result = func(*args, **(kwargs or {}))
        name = func.__name__
        self._counts[name] = self._counts.get(name, 0) + 1
        for entry in tree_leaves(result):
            if isinstance(entry, torch.Tensor):
                entry.__dict__[_RETURNED_BY] = (self._recording, len(self._calls))
        self._calls.append(Call(name, self._counts[name], inputs))
        return result

    def last(self) -> Call | None:
        """Return the call that made the output, apart from changes of shape and type."""
        return self.behind(self._number(self.output)) if isinstance(self.output, torch.Tensor) else None

    def behind(self, number: int) -> Call | None:
        """Return the call that made what call ``number`` returned, apart from changes of shape and type."""
        while number >= 0:
            call = self._calls[number]
            if call.name not in _RESHAPING or not call.inputs:
                return call
            number = call.inputs[0]
        return None

    def inputs_of(self, call: Call) -> list[Call | None]:
        """Return the calls that made what ``call`` was given."""
        return [self.behind(number) for number in call.inputs]

    def _number(self, tensor: torch.Tensor) -> int:
        """Return the number of the call that returned ``tensor`` in this recording; -1 if none did."""
        recording, number = getattr(tensor, "__dict__", {}).get(_RETURNED_BY, (None, -1))
        return number if recording is self._recording else -1


def find_softmax(calls: Calls) -> Ending | None:
    """Return the softmax, or log-softmax, that makes the output; None if there is none."""
    last = calls.last()
    if last is None:
        return None
    if last.name in _SOFTMAX:
        return Ending(last.name.removeprefix("special_"), last.place, last.place)
    first = _first_of_written_out(calls, last)
    return None if first is None else Ending("softmax", first.place, last.place)


def find_sigmoid(calls: Calls) -> Ending | None:
    """Return the sigmoid, or its logarithm, that makes the output; None if there is none."""
    last = calls.last()
    if last is None:
        return None
    if last.name in _SIGMOID | _LOG_SIGMOID:
        return Ending("sigmoid" if last.name in _SIGMOID else "log-sigmoid", last.place, last.place)
    before = calls.inputs_of(last)[0] if last.name in _LOG and last.inputs else None
    is_log = before is not None and before.name in _SIGMOID
    return Ending("log-sigmoid", before.place, last.place) if before is not None and is_log else None


def find_choice(calls: Calls) -> str:
    """Return the name of the function that makes classes without scores as the output; "" for any other."""
    last = calls.last()
    return last.name if last is not None and last.name in _CHOICE else ""


def _first_of_written_out(calls: Calls, last: Call) -> Call | None:
    """Return the call that is given the logits of a softmax written out up to ``last``."""
    given = calls.inputs_of(last)
    if last.name in _EXP and given[0] is not None:
        return given[0] if given[0].name in _LOG_SOFTMAX else _shifted_by_logsumexp(calls, given[0])
    if last.name == "normalize" and given[0] is not None:
        return given[0] if given[0].name in _EXP | _SOFTMAX - _LOG_SOFTMAX else None
    above, below = _quotient(calls, last)
    if above is None or below is None or above.name not in _EXP or below.name != "sum":
        return None
    summed = calls.inputs_of(below)[0]
    is_of_the_same = summed is not None and summed.name in _EXP and summed.inputs == above.inputs
    return above if is_of_the_same else None


def _quotient(calls: Calls, call: Call) -> tuple[Call | None, Call | None]:
    """Return what made numerator and denominator of a quotient, or of a product with a reciprocal."""
    given = calls.inputs_of(call)
    if call.name not in _DIVIDE | _MULTIPLY or len(given) != 2:
        return None, None
    above, below = given
    if call.name in _DIVIDE:
        return above, below
    if above is not None and above.name in _INVERT:
        above, below = below, above
    if below is None or below.name not in _INVERT:
        return None, None
    return above, calls.inputs_of(below)[0]


def _shifted_by_logsumexp(calls: Calls, call: Call) -> Call | None:
    """Return ``call`` if it is x - logsumexp(x)."""
    if call.name not in _SUBTRACT or len(call.inputs) != 2:
        return None
    total = calls.inputs_of(call)[1]
    is_of_the_same = total is not None and total.name == "logsumexp" and total.inputs[0] == call.inputs[0]
    return call if is_of_the_same else None
