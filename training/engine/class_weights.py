"""Weights of the classes in the loss, so that rare classes count as they should.

With N images, n_c of them of class c, and K classes, "balanced" is N / (K n_c): every class has the same sum
of weights. Weights from a file are scaled so that their mean over the images is 1, as that of balanced ones
is; the learning rate then means the same with and without them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foldserve.text import join_names, quote
from foldserve.training.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BALANCED = "balanced"
_MOST_BYTES = 16 * 1024 * 1024


def class_weights(choice: str, labels: Sequence[str], targets: Tensor) -> Tensor:
    """Return float32 [K], the weight of each of ``labels``, for ``targets`` int64 [N].

    ``choice`` is "balanced" or a JSON file with an object that gives each label a weight above 0.

    Raises:
        RunError: the file cannot be read, or does not give every label and no others a weight above 0.
    """
    counts = torch.bincount(targets.cpu(), minlength=len(labels)).double()
    if choice == BALANCED:
        weights = len(targets) / (len(labels) * counts.clamp(min=1))
    else:
        given = _read(Path(choice), labels)
        weights = torch.tensor([given[label] for label in labels], dtype=torch.float64)
        weights = weights * len(targets) / (weights @ counts)
    return weights.float()


def _read(path: Path, labels: Sequence[str]) -> dict[str, float]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RunError(f"--class-weights {path} has more than {_MOST_BYTES:,} bytes")
        given: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RunError(
            f"--class-weights {path} cannot be read: {error.strerror or error}; expected balanced, or a JSON "
            'file such as {"cat": 1.0, "dog": 2.5}'
        ) from error
    except ValueError as error:
        raise RunError(f"--class-weights {path} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise RunError(
            f'--class-weights {path} holds a {type(given).__name__}; expected {{"LABEL": WEIGHT, ...}}'
        )
    if unknown := [name for name in given if name not in labels]:
        raise RunError(
            f"--class-weights {path} names {join_names(unknown)}, which the data set does not have; its "
            f"classes are {join_names(labels)}"
        )
    if missing := [label for label in labels if label not in given]:
        raise RunError(
            f"--class-weights {path} has no weight for {join_names(missing)}; give every class one"
        )
    for label, weight in given.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight < float("inf"):
            raise RunError(
                f"--class-weights {path} gives {quote(label)} the weight {weight!r}; expected a number above "
                "0"
            )
    return given
