"""Compares two runs bit for bit: weights, their average, the optimizer's state, and each epoch's figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from foldserve.training.checkpoint import BEST_FILE, LAST_FILE, load_checkpoint
from foldserve.training.run.run_folder import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What the clock says is another each time.
_TIMES = frozenset({"images_per_s", "train_s"})


def differences(one: Path, other: Path) -> list[str]:
    """Return what differs between two finished runs; empty if all bits are the same.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
    """
    found = []
    for name in (BEST_FILE, LAST_FILE):
        first, second = load_checkpoint(one / name), load_checkpoint(other / name)
        for what in ("weights", "ema_weights", "trainer"):
            pair = dict(_tensors(getattr(first, what), what)), dict(_tensors(getattr(second, what), what))
            found += [f"{name}: {each}" for each in sorted(pair[0].keys() ^ pair[1].keys())]
            found += [
                f"{name}: {each}"
                for each in sorted(pair[0].keys() & pair[1].keys())
                if not _is_same(pair[0][each], pair[1][each])
            ]
    figures = [_figures(run / METRICS_FILE) for run in (one, other)]
    if figures[0] != figures[1]:
        found.append(f"{METRICS_FILE}: {len(figures[0])} and {len(figures[1])} epochs, or other figures")
    return found


def _tensors(value: Any, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in ``value`` with their places."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{place}.{key}")


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors have the same bits: a zero and a negative zero, which are equal, have not."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.numpy().tobytes() == second.numpy().tobytes()
    )


def _figures(file: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in _TIMES} for record in records]
