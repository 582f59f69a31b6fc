"""The life cycle: which states follow each other, and what is answered in each."""

from __future__ import annotations

import asyncio

import pytest

from foldserve.serving.server_state import Lifecycle, ServerState

STARTING, READY, LEAVING, DRAINING, STOPPED = ServerState

LEGAL = {
    (STARTING, READY),
    (STARTING, LEAVING),
    (STARTING, DRAINING),
    (READY, LEAVING),
    (READY, DRAINING),
    (LEAVING, DRAINING),
    (DRAINING, STOPPED),
}
PATHS = {
    STARTING: [],
    READY: [READY],
    LEAVING: [LEAVING],
    DRAINING: [DRAINING],
    STOPPED: [DRAINING, STOPPED],
}


def lifecycle_in(state: ServerState) -> Lifecycle:
    lifecycle = Lifecycle()
    for entered in PATHS[state]:
        lifecycle.enter(entered)
    return lifecycle


@pytest.mark.parametrize("before", ServerState)
@pytest.mark.parametrize("after", ServerState)
def test_only_legal_transitions_are_made(before: ServerState, after: ServerState) -> None:
    lifecycle = lifecycle_in(before)
    assert lifecycle.state is before
    if (before, after) in LEGAL:
        lifecycle.enter(after)
        assert lifecycle.state is after
    else:
        with pytest.raises(ValueError, match=f"{before.name} cannot become {after.name}"):
            lifecycle.enter(after)
        assert lifecycle.state is before, "a refused transition changes nothing"


@pytest.mark.parametrize(
    ("state", "is_leaving", "refuses_inference"),
    [
        (STARTING, False, False),
        (READY, False, False),
        (LEAVING, True, False),
        (DRAINING, True, True),
        (STOPPED, True, True),
    ],
)
def test_inference_is_refused_only_after_load_balancers_were_told(
    state: ServerState, is_leaving: bool, refuses_inference: bool
) -> None:
    lifecycle = lifecycle_in(state)
    assert lifecycle.is_leaving is is_leaving
    assert lifecycle.refuses_inference is refuses_inference


def test_leaving_server_still_knows_whether_it_had_loaded() -> None:
    interrupted, ready = Lifecycle(), Lifecycle()
    ready.enter(READY)
    for lifecycle in (interrupted, ready):
        lifecycle.enter(LEAVING)
    assert not interrupted.has_loaded
    assert ready.has_loaded


def test_waiting_ends_with_the_state_and_at_once_after_it() -> None:
    async def wait_for_drain() -> None:
        lifecycle = Lifecycle()
        waiting = asyncio.ensure_future(lifecycle.wait_for(DRAINING))
        lifecycle.enter(LEAVING)
        await asyncio.sleep(0)
        assert not waiting.done()
        lifecycle.enter(DRAINING)
        await waiting
        lifecycle.enter(STOPPED)
        await lifecycle.wait_for(DRAINING)

    asyncio.run(wait_for_drain())
