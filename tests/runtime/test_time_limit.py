"""Tests time limits: results are handed over, and work that does not end is stopped or abandoned."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from foldserve.errors import LoadsHangError, LoadTimeoutError
from foldserve.runtime.time_limit import StopSignal, TimeLimit
from tests.support.repository_changes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOR_EVER_S = 1000.0


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Return an event that is set at the end of the test, so that work waiting for it ends."""
    event = threading.Event()
    yield event
    event.set()


def hanging_on(event: threading.Event) -> Callable[[StopSignal], None]:
    """Work that ignores the stop signal, and ends only with ``event``."""

    def hang(_: StopSignal) -> None:
        event.wait(FOR_EVER_S)

    return hang


def obedient(stop: StopSignal) -> str:
    """Work that ends only when it is told to stop."""
    told = threading.Event()
    stop.on_set(told.set)
    assert told.wait(FOR_EVER_S)
    return "too late"


def test_result_or_exception_in_time_is_handed_over() -> None:
    limit = TimeLimit(FOR_EVER_S)
    assert limit.run("model/1", lambda _: 7) == 7
    with pytest.raises(ZeroDivisionError):
        limit.run("model/1", lambda _: 1 // 0)
    assert limit.unfinished_count == 0


def test_work_over_the_limit_is_stopped_and_its_result_discarded() -> None:
    limit = TimeLimit(0.01, stop_s=FOR_EVER_S)
    with pytest.raises(LoadTimeoutError, match=r"longer than the limit of 0\.01 s.*--load-timeout-s"):
        limit.run("model/1", obedient)
    assert limit.unfinished_count == 0


def test_abandoned_loads_are_limited_until_one_ends(release: threading.Event) -> None:
    limit = TimeLimit(0.01, stop_s=0.01)
    for number in range(4):
        with pytest.raises(LoadTimeoutError):
            limit.run(f"model/{number}", hanging_on(release))
    with pytest.raises(
        LoadsHangError, match=r"one of 4 loads that cannot be stopped.*model/0, model/1, model/2, model/3"
    ):
        limit.run("model/4", lambda _: 7)
    release.set()
    eventually(lambda: limit.unfinished_count == 0, "what was left behind ends")
    with contextlib.suppress(LoadTimeoutError):  # a busy machine may take longer; it has begun
        limit.run("model/4", lambda _: None)


def test_close_stops_running_work_and_starts_none() -> None:
    limit = TimeLimit(FOR_EVER_S)
    failures: list[str] = []
    begun = threading.Event()

    def work(stop: StopSignal) -> str:
        begun.set()
        return obedient(stop)

    def load() -> None:
        with pytest.raises(LoadTimeoutError) as raised:
            limit.run("model/1", work)
        failures.append(str(raised.value))

    loading = threading.Thread(target=load)
    loading.start()
    assert begun.wait(60)
    limit.close()
    loading.join(60)
    assert failures == ["the server is stopping"]
    with pytest.raises(LoadTimeoutError, match="the server is stopping"):
        limit.run("model/2", lambda _: 7)


def test_stop_is_called_at_once_if_the_signal_is_already_set() -> None:
    stop, told = StopSignal(), []
    stop.set()
    stop.on_set(lambda: told.append("told"))
    assert told == ["told"]


def test_each_step_has_a_limit_of_its_own() -> None:
    """Work may take many times a step's limit in all; a single step may not."""
    limit = TimeLimit(FOR_EVER_S, step_s=2.0)
    tick = threading.Event()

    def many_steps(stop: StopSignal) -> int:
        for _ in range(30):
            tick.wait(0.1)
            stop.note_step()
        return 30

    assert limit.run("model/1", many_steps) == 30
    with pytest.raises(LoadTimeoutError, match=r"a step of loading took longer than its limit of 0\.01 s"):
        TimeLimit(FOR_EVER_S, step_s=0.01, stop_s=FOR_EVER_S).run("model/1", obedient)
