"""Tests the numbers of instances and of overflow instances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from foldserve.runtime import model_settings, verified_model
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.verified_model import open_verified
from foldserve.serving.model import served_model as served
from foldserve.serving.model.served_model import ServedModel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork


@pytest.mark.parametrize(
    ("settings", "quick_batch_s", "expected"),
    [
        pytest.param({}, 60.0, (1, 3), id="a quick model has one per CPU"),
        pytest.param({"intra_op_threads": 2}, 60.0, (1, 1), id="with two threads each, one per two CPUs"),
        pytest.param({"intra_op_threads": 8}, 60.0, (1, 0), id="with more threads than CPUs, none"),
        pytest.param({"instances": 1}, 60.0, (1, 0), id="what is asked for is all there is"),
        pytest.param({"instances": 2}, 60.0, (2, 0), id="two are two"),
        pytest.param({}, 0.0, (1, 0), id="a slow model uses all CPUs already"),
    ],
)
def test_instances(
    *,
    settings: dict[str, Any],
    quick_batch_s: float,
    expected: tuple[int, int],
    network: TinyNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (served, model_settings):
        monkeypatch.setattr(module, "usable_cpus", lambda: 4)
    monkeypatch.setattr(verified_model, "_QUICK_BATCH_S", quick_batch_s)
    network.publish(tmp_path / "tiny")
    asked = ModelSettings(device="cpu", **settings)
    model = ServedModel("tiny", 1, open_verified(tmp_path / "tiny" / "1", asked), asked)
    try:
        assert (model.instance_count, model.overflow_count) == expected
    finally:
        model.close(grace_s=5)
