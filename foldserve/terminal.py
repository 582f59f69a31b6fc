"""Prints lines and, if the output is a terminal, live progress bars."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Without a terminal, a line at this interval shows that a long epoch is still running.
_PLAIN_LINE_EVERY_S = 30.0


def duration_text(seconds: float) -> str:
    """Return a duration in at most two units: "42 s", "3 min 20 s", "5 h 07 min"."""
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest_s} s"
    hours, rest_min = divmod(minutes, 60)
    return f"{minutes} min {rest_s:02} s" if hours < 1 else f"{hours} h {rest_min:02} min"


def own_command() -> str:
    """Return what the user types to run foldserve again: just ``foldserve`` if the search path has it.

    `make demo` runs it from an environment that is not activated, where the bare name is not found.
    """
    if shutil.which("foldserve"):
        return "foldserve"
    if Path(sys.argv[0]).name == "foldserve":
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m foldserve"


class Terminal:
    """Standard output; shows progress bars on a terminal only, as they are noise in a file or pipe."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    @classmethod
    def silent(cls) -> Terminal:
        """Return a terminal that prints nothing, for all but one process of a distributed run."""
        return cls(Console(quiet=True))

    @property
    def is_live(self) -> bool:
        """Whether bars can be drawn."""
        return self.console.is_terminal

    def say(self, line: str) -> None:
        """Print one line without wrapping or markup; escape characters that the encoding lacks."""
        encoding = self.console.encoding
        shown = line.encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(shown, soft_wrap=True, markup=False, highlight=False)

    @contextmanager
    def downloading(
        self, name: str, total_bytes: int | None, done_bytes: int
    ) -> Iterator[Callable[[int], None]]:
        """Show a download; call the yielded function with the number of new bytes."""
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(
            *columns, TimeRemainingColumn(), console=self.console, disable=not self.is_live, transient=True
        ) as progress:
            task = progress.add_task(name, total=total_bytes, completed=done_bytes)
            yield lambda count: progress.advance(task, count)

    @contextmanager
    def counting(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show work on ``total`` items; call the yielded function with the number of newly finished ones."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=not self.is_live, transient=True) as progress:
            task = progress.add_task(name, total=total)
            done, last_line = 0, time.monotonic()

            def advance(count: int) -> None:
                nonlocal done, last_line
                done += count
                progress.advance(task, count)
                now = time.monotonic()
                if not self.is_live and now - last_line > _PLAIN_LINE_EVERY_S:
                    last_line = now
                    self.say(f"{name} {done:,}/{total:,}")

            yield advance

    @contextmanager
    def counting_on(self, name: str) -> Iterator[Callable[[int], None]]:
        """Show work on an unknown number of images; call the yielded function with how many were finished."""
        columns = (TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not self.is_live, transient=True) as progress:
            task = progress.add_task(name, total=None)
            started = last_line = time.monotonic()
            done = 0

            def advance(count: int) -> None:
                nonlocal done, last_line
                done += count
                now = time.monotonic()
                text = f"{name} {done:,}, {done / max(now - started, 1e-3):,.0f} images/s"
                progress.update(task, description=text)
                if not self.is_live and now - last_line > _PLAIN_LINE_EVERY_S:
                    last_line = now
                    self.say(text)

            yield advance

    @contextmanager
    def training(self, total_steps: int, done_steps: int) -> Iterator[Callable[[int, str], None]]:
        """Show a training run; call the yielded function with the steps done so far and a text."""
        with Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.is_live,
            transient=True,
            speed_estimate_period=120.0,  # with the default, 30 s, the estimate jumps at each evaluation
        ) as progress:
            task = progress.add_task("", total=total_steps, completed=done_steps)
            started = last_line = time.monotonic()

            def show(steps: int, text: str) -> None:
                nonlocal last_line
                progress.update(task, completed=steps, description=text)
                now = time.monotonic()
                if not self.is_live and now - last_line > _PLAIN_LINE_EVERY_S:
                    last_line = now
                    left_s = (now - started) * (total_steps - steps) / max(1, steps - done_steps)
                    self.say(f"{text}, {duration_text(left_s)} left")

            yield show
