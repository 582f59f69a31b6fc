"""Runs long work in a thread beside an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def run_in_thread(work: Callable[[], _T], name: str) -> asyncio.Future[_T]:
    """Start ``work`` in a thread of its own and return a future of its result on the running loop.

    The loop's executor would not do: Python waits for its threads at exit, and work that hangs must not keep
    SIGTERM from ending the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def finish(result: _T | None, error: Exception | None) -> None:
        if future.done():  # cancelled: nothing waits for it
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only if work returns None

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # passed to the future
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits for it
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
