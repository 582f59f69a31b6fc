"""Tests notifications of changes: from any thread to the event loop, and from the repository to listeners."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.changes import Changes
from foldserve.serving.repository.repository import ModelRepository

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from foldserve.serving.model.loader import LoadOutcome
    from tests.support.artifacts import TinyNetwork


def test_changes_are_coalesced_and_a_failing_listener_does_not_end_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []

    async def follow() -> None:
        changes = Changes()
        tell_failed = asyncio.Event()

        async def tell() -> None:
            told.append(threading.current_thread().name)
            if len(told) == 1:
                tell_failed.set()
                raise RuntimeError("the first one fails")

        for _ in range(100):  # before anybody follows
            changes.notify()
        following = asyncio.ensure_future(changes.follow(tell))
        await tell_failed.wait()
        thread = threading.Thread(target=lambda: [changes.notify() for _ in range(100)])
        thread.start()
        thread.join()
        while len(told) < 2:
            await asyncio.sleep(0)
        following.cancel()

    asyncio.run(asyncio.wait_for(follow(), timeout=20))
    assert set(told) == {threading.current_thread().name}
    assert len(told) == 2
    assert "publishing a change failed" in caplog.text


def test_repository_reports_each_load_and_each_change_of_its_serving_models(
    tmp_path: Path, network: TinyNetwork
) -> None:
    network.publish(tmp_path / "tiny")
    (network.publish(tmp_path / "tiny") / "golden.npz").unlink()
    loads: list[LoadOutcome] = []
    serving: list[int] = []
    repository = ModelRepository(
        tmp_path,
        ModelSettings(device="cpu"),
        on_load=loads.append,
    )
    repository.index.subscribe(lambda: serving.append(len(repository.index.ready_models())))
    repository.load_all()
    assert sorted((load.name, load.version, load.refusal is None) for load in loads) == [
        ("tiny", 1, True),
        ("tiny", 2, False),
    ]
    assert all(load.seconds > 0 for load in loads)
    assert serving[-1] == 1
    repository.unload("tiny")
    assert serving[-1] == 0
    repository.close(grace_s=1)
