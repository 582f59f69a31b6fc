"""Draws how requests become batches: the server's own queue, asked at the times that a schedule gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from docsite.figures.drawing import BLUE, GREY, INK, MUTED, ORANGE, PURPLE, RED, TEAL, Drawing
from foldserve.serving.batching.queue import RequestQueue
from foldserve.serving.batching.request import Request

_MAX_BATCH_SIZE = 8
_COLOURS = {"A": TEAL, "B": ORANGE, "C": PURPLE, "D": BLUE, "E": RED}
# Caller, images, and the millisecond in which the request arrives.
_ARRIVALS = (("A", 1, 1), ("B", 2, 3), ("C", 1, 4), ("D", 3, 6), ("A", 1, 7), ("E", 12, 12), ("B", 1, 13))
_LEFT, _PER_MS, _TOP, _ROW = 104, 27, 64, 34


@dataclass(frozen=True)
class _Batch:
    start_ms: float
    end_ms: float
    parts: tuple[tuple[str, int], ...]  # callers and their images, in order


def draw() -> str:
    """Return the figure."""
    batches = _batches()
    drawing = Drawing(720, 430, "Requests wait while an execution runs, and then run together")
    drawing.text(16, 30, "A batch's life", size=17, bold=True, anchor="start")
    drawing.text(
        16, 50, "One instance, at most 8 images per batch. Widths are time.", anchor="start", size=13
    )
    callers = sorted({caller for caller, *_ in _ARRIVALS})
    for index, caller in enumerate(callers):
        y = _TOP + 22 + index * _ROW
        drawing.text(16, y + 15, f"caller {caller}", anchor="start", size=13)
        drawing.line(_LEFT, y + 22, 700, y + 22)
    bottom = _TOP + 22 + len(callers) * _ROW + 30
    _draw_waits(drawing, batches, callers)
    for batch in batches:
        _draw_batch(drawing, batch, bottom)
    drawing.text(16, bottom + 30, "the model", anchor="start", size=13, bold=True)
    drawing.arrow(_LEFT, bottom + 116, 700, bottom + 116)
    drawing.text(690, bottom + 134, "time", size=12, colour=MUTED)
    return drawing.to_svg()


def _batches() -> list[_Batch]:
    """Run the schedule: a free instance takes up to 8 images, and needs 2 ms and 0.4 per image."""
    now = 0.0
    queue: RequestQueue[Request] = RequestQueue(
        max_batch_size=_MAX_BATCH_SIZE, max_rows=64, max_bytes=2**20, max_delay_s=0, clock=lambda: now
    )
    waiting, batches = list(_ARRIVALS), []
    while waiting or queue.row_count:
        if not queue.row_count:
            now = max(now, waiting[0][2])
        while waiting and waiting[0][2] <= now:
            caller, count, _ = waiting.pop(0)
            queue.add(Request(rows=np.zeros((count, 1)), caller=caller), lambda *_: None, now)
        parts, _ = queue.take_batch()
        taken = tuple((str(part.request.caller), len(part.rows)) for part in parts)
        end = now + 2 + 0.4 * sum(count for _, count in taken)
        batches.append(_Batch(now, end, taken))
        now = end
    return batches


def _draw_waits(drawing: Drawing, batches: list[_Batch], callers: list[str]) -> None:
    """Draw each request from its arrival to the first batch that has images of it."""
    for caller, count, arrival in _ARRIVALS:
        first = next(
            batch
            for batch in batches
            if batch.start_ms >= arrival and any(name == caller for name, _ in batch.parts)
        )
        y = _TOP + 22 + callers.index(caller) * _ROW
        x, end = _LEFT + arrival * _PER_MS, _LEFT + first.start_ms * _PER_MS
        drawing.box(x - 5, y + 3, 10, 19, _COLOURS[caller], radius=3)
        label = f"{count} image{'s' if count > 1 else ''}"
        if end - x > 4:
            drawing.box(x, y + 9, end - x, 7, GREY, radius=2)
        drawing.text(x + 9, y + 6, label, size=11, anchor="start", colour=INK)


def _draw_batch(drawing: Drawing, batch: _Batch, y: float) -> None:
    x, width = _LEFT + batch.start_ms * _PER_MS, (batch.end_ms - batch.start_ms) * _PER_MS
    drawing.line(x, _TOP + 14, x, y, dashed=True)
    drawing.box(x, y, width, 58, GREY)
    total = sum(count for _, count in batch.parts)
    cell = min(11.0, (width - 8) / _MAX_BATCH_SIZE)
    at = x + 5
    for caller, count in batch.parts:
        for _ in range(count):
            drawing.box(at, y + 10, cell - 2, 16, _COLOURS[caller], radius=2)
            at += cell
    drawing.text(x + width / 2, y + 46, f"{total} image{'s' if total > 1 else ''}", size=11)
    names = ", ".join(dict.fromkeys(caller for caller, _ in batch.parts))
    drawing.arrow(x + width, y + 58, x + width, y + 84)
    drawing.text(x + width - 2, y + 100, f"to {names}", size=11, anchor="end")
