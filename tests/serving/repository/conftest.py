"""Keeps a busy machine from leaving the loads of these tests in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from foldserve.serving.repository import parallel_jobs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Have `refresh` return only when all is loaded, however long that takes.

    It leaves loads of more than a few seconds behind, which on a busy machine are those of a tiny network.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_jobs, "_SLOW_S", 3600.0)
        yield
