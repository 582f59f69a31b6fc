"""Which version answers requests that name none, over any order of loads, removals and promotions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from unittest.mock import sentinel

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.repository.index import ModelIndex, VersionEntry

if TYPE_CHECKING:
    from foldserve.serving.model.served_model import ServedModel


def model(version: int) -> ServedModel:
    return cast("ServedModel", getattr(sentinel, f"version_{version}"))  # it is only handed on


def ready(version: int) -> VersionEntry:
    return VersionEntry("tiny", version, "READY", "", model(version))


_version = st.integers(1, 4)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("load"), _version),
        st.tuples(st.just("refuse"), _version),
        st.tuples(st.just("remove"), _version),
        st.tuples(st.just("promote"), st.lists(_version, max_size=3, unique=True).map(tuple)),
    ),
    max_size=20,
)


@given(_steps)
def test_the_default_is_promoted_or_else_goes_on_or_else_is_the_newest(
    steps: list[tuple[str, object]],
) -> None:
    index, promoted, before = ModelIndex(), (), None
    for kind, what in steps:
        match kind, what:
            case "load", int(version):
                index.put(ready(version))
            case "refuse", int(version):
                index.put(VersionEntry("tiny", version, "UNAVAILABLE", "refused"))
            case "remove", int(version):
                index.remove("tiny", version)
            case _:
                promoted = cast("tuple[int, ...]", what)
                index.promote("tiny", promoted)
        if not index.versions_of("tiny") and kind == "remove":
            promoted = ()  # the model is gone, and its promotions with it
        serving = {number for number, entry in index.versions_of("tiny").items() if entry.model}
        now = index.default_of("tiny")
        if not serving:
            assert now is None
            with pytest.raises((NotFoundError, UnavailableError)):
                index.find("tiny", "")
            before = None
            continue
        assert index.find("tiny", "") is model(now or 0)
        if not promoted:
            assert now == max(serving)
        elif promoted[0] in serving:
            assert now == promoted[0]
        elif before in serving:
            assert now == before, "what answers goes on until the promoted version serves"
        else:
            earlier = [version for version in promoted if version in serving]
            assert now == (earlier[0] if earlier else max(serving))
        before = now


def test_a_model_that_was_only_promoted_is_not_known() -> None:
    index = ModelIndex()
    index.promote("tiny", (1,))
    with pytest.raises(NotFoundError):
        index.find("tiny", "")
    index.promote("tiny", ())
    assert index.names() == []
