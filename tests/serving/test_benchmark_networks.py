"""The networks that the serving benchmark measures are those that its code makes now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.serving import networks
from benchmarks.serving.networks import lenet
from serving.artifact import list_versions

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_network_left_by_an_earlier_run_is_used_only_if_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = lenet(tmp_path, None)
    assert lenet(tmp_path, None) == first
    before = first.model_file.read_bytes()
    linear = networks._Graph.linear

    def wider(graph: networks._Graph, inputs: int, outputs: int, *, relu: bool) -> None:
        linear(graph, 88 if inputs == 84 else inputs, 88 if outputs == 84 else outputs, relu=relu)

    monkeypatch.setattr(networks._Graph, "linear", wider)
    second = lenet(tmp_path, None)
    assert second.model_file.read_bytes() != before
    assert second.model_file != first.model_file
    monkeypatch.undo()
    assert lenet(tmp_path, None).model_file.read_bytes() == before


def test_a_repository_of_the_users_is_measured_as_it_is(tmp_path: Path):
    published = lenet(tmp_path, None)
    taken = lenet(tmp_path / "unused", published.repository)
    assert taken == published
    assert list_versions(published.repository / "lenet") == [1]
    (tmp_path / "empty").mkdir()
    assert lenet(tmp_path, tmp_path / "empty").repository == published.repository
