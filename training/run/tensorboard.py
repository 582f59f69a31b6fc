"""Logs the figures of a run for TensorBoard, if it is installed; metrics.jsonl has them in any case."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Record = Callable[[dict[str, Any], int], None]


@contextmanager
def tensorboard_log(folder: Path, start_step: int, *, is_on: bool) -> Iterator[Record]:
    """Open a log in ``folder`` that resumes at ``start_step``, if ``is_on``.

    Yields a function that logs figures at a step. TensorBoard drops figures that an interrupted run logged
    after ``start_step``.
    """
    if not is_on or find_spec("tensorboard") is None:
        yield lambda _figures, _step: None
        return
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # optional, and slow to import

    writer = SummaryWriter(str(folder), purge_step=start_step)

    def record(figures: dict[str, Any], step: int) -> None:
        for name, value in figures.items():
            group, _, kind = name.partition("_")
            tag = f"{kind}/{group}" if group in ("train", "validation") and kind != "s" else f"run/{name}"
            writer.add_scalar(tag, value, step)

    try:
        yield record
    finally:
        writer.close()
