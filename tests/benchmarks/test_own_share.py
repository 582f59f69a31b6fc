"""The own share in the tables of `make bench-serving`: what is subtracted from what, and what echoes send."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from benchmarks.serving.check import checked_answer_bytes
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.load import Measurement
from benchmarks.serving.model_cost import ModelCost
from benchmarks.serving.networks import lenet
from benchmarks.serving.report import own_share_us, shares_table
from benchmarks.serving.rounds import GroupResult
from benchmarks.serving.rows import SHARES, is_shared_out, trials_of
from benchmarks.serving.server_process import running

if TYPE_CHECKING:
    from benchmarks.serving.networks import Network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return lenet(tmp_path_factory.mktemp("networks"))


def measured(server_us: float, **others: float) -> Measurement:
    figures = {"requests": 100, "requests_per_s": 1e4, "images_per_s": 1e4, "p50_us": 900, "p99_us": 1500}
    return Measurement(**{**figures, **others}, server_us=server_us)  # type: ignore[arg-type]


def test_the_own_share_is_what_model_and_echo_leave() -> None:
    assert own_share_us(measured(57, model_us=20, batch=8), measured(24)) == 13


def test_the_table_has_the_median_of_the_rounds_shares() -> None:
    share = next(share for share in SHARES if share.group == "lenet")
    served = [measured(us, model_us=20, batch=8.5) for us in (57, 61, 90)]
    echoes = [measured(us) for us in (24, 21, 33)]
    result = GroupResult({share.served: served, share.echo: echoes})
    text = io.StringIO()
    Console(file=text, width=200).print(shares_table({"lenet": result}))
    row = next(line for line in text.getvalue().splitlines() if share.title in line)
    assert "20 [13 37]" in row, "61 - 20 - 21 us in the middle round"
    assert "8.5" in row
    assert "33%" in row


def test_a_transport_that_is_missing_has_no_share() -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(shares_table({"lenet": GroupResult()}))
    assert text.getvalue().count("skipped") == 2


def test_what_is_subtracted_is_measured_in_the_same_group() -> None:
    for share in SHARES:
        assert {share.served, share.echo} <= set(trials_of(share.group))
        assert share.served.load == share.echo.load
        assert is_shared_out(share.group, share.served)
        assert not is_shared_out(share.group, share.echo)


def test_a_mean_batch_between_whole_numbers_costs_between_them(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = ModelCost(network)
    assert cost.us_per_image(1) > 0
    monkeypatch.setattr(cost, "_run_us", lambda batch: 10 + 5 * batch)
    assert cost.us_per_image(2.5) == pytest.approx((10 + 5 * 2.5) / 2.5)
    assert cost.us_per_image(4) == pytest.approx(30 / 4)


@pytest.mark.parametrize("kind", ["echo_native", "echo_aio"])
def test_an_echo_sends_as_many_bytes_as_foldserve_would(network: Network, kind: str) -> None:
    if kind == "echo_native":
        pytest.importorskip("pygrpc_native", exc_type=ImportError)
    with running(Contestant(kind), network) as echo:  # type: ignore[arg-type]
        transport = "native" if kind == "echo_native" else "grpcio"
        with running(Contestant("foldserve", transport), network) as served:  # type: ignore[arg-type]
            assert checked_answer_bytes(echo, network, 1) == checked_answer_bytes(served, network, 1)
