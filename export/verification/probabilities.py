"""Are these logits, or probabilities already? A softmax on top of probabilities would flatten them.

`serialize` puts the softmax behind whatever a network answers. From a network that answers probabilities
callers would get others: with 10 classes, certainty would be shown as 0.23. So what can be told from the
answers is told, before anything is published:

    nothing is negative, and every row adds up to 1   a softmax, in whatever way it was computed
    all between 0 and 1, and some far apart           a sigmoid for each class, in whatever way
    one number an image                               one logit, or the probability of one of two classes

The logits of a network that was trained are hardly ever like that; if some are, the user can say so
(``--as-logits``). All between 0 and 1 but close together may be logits of small weights: that is a warning. A
sigmoid or softmax that can be seen in the graph needs no guess (`foldserve.export.graph.endings`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.model_outputs import softmax
from foldserve.export.errors import SourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

AS_LOGITS = "--as-logits takes its answers for logits as they are"
TAKEN_AS_LOGITS = "its answers are taken for logits as they are (--as-logits)"
_WHAT_TO_DO = (
    "and a softmax on top would change what it says. Let the network's factory return a network without that "
    f"last step, or name the tensor of an .onnx file that holds logits with --output; {AS_LOGITS}"
)

# Of a sum of probabilities: half precision rounds each of them by 1 in 2,048.
_SUM = 1e-3
# Between the smallest and the largest answer. Logits of a network with small weights may lie between 0 and 1
# by chance, and then close together; a sigmoid for each class that is worth serving is sure of something.
_BOTH_ENDS = 0.5
# Absolute and relative, for half precision: what is to be seen is a softmax over something else.
_ALMOST, _ALMOST_OF = 1e-3, 1e-2


def check_logits(answers: NDArray[Any]) -> str:
    """Return a warning, or "", on ``answers`` [N, K], finite, to different images.

    Raises:
        SourceError: they are no logits of one class among several; the message says what to do.
    """
    count, class_count = answers.shape
    check_class_count(class_count)
    low, high = float(answers.min()), float(answers.max())
    if low < 0 or high > 1 + _SUM:
        return ""
    sums = answers.astype(np.float64).sum(axis=1)
    if np.abs(sums - 1).max() <= _SUM:
        raise _refusal(
            f"the network's answers for {count} images are not negative and add up to 1 for each: they are "
            "probabilities already, as after a softmax"
        )
    between = f"the network's answers for {count} images all lie between 0 and 1 ({low:.3g} to {high:.3g})"
    if high - low >= _BOTH_ENDS:
        raise _refusal(f"{between}: they are probabilities already, as after a sigmoid")
    return f"warning: {between}; if they are probabilities, export a network that answers logits"


def check_class_count(class_count: int) -> None:
    """Refuse a network of a single answer.

    Raises:
        SourceError: ``class_count`` is 1; the message says what to do.
    """
    if class_count == 1:
        raise SourceError(
            "the network answers one number an image, whose softmax is always 1; expected a logit for each "
            "of two classes or more. For yes or no let it answer 0 and its logit, with a name for each: the "
            f"softmax of [0, logit] is [1 - sigmoid(logit), sigmoid(logit)]; {AS_LOGITS}"
        )


def no_logits_text(end: str) -> str:
    """Say what to do about a network that ends in ``end``, a sigmoid say."""
    return f"the network ends in a {end}: it answers no logits, {_WHAT_TO_DO}"


def _refusal(what: str) -> SourceError:
    return SourceError(f"{what}, {_WHAT_TO_DO}")


def answers_softmax(given: NDArray[Any], logits: NDArray[Any]) -> bool:
    """Tell whether ``given`` are the probabilities, or their logarithms, that ``logits`` [N, K] stand for."""
    if given.shape != logits.shape or given.ndim != 2:
        return False
    expected = softmax(logits)
    probabilities = np.exp(given.astype(np.float64)) if given.min(initial=0.0) < 0 else given
    return bool((np.abs(probabilities - expected) <= _ALMOST + _ALMOST_OF * expected).all())
