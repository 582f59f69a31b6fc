"""A real Prometheus scrapes a real server, and its answers are compared with the numbers of requests sent."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from foldserve.demo.children import ending_with_us
from foldserve.training.datasets.sources import cache_folder
from tests.support.scrape import get
from tests.support.server_process import PROVIDER, ServerProcess, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork

CACHE = cache_folder("prometheus")  # where `make prometheus` puts it
START_S = 60.0  # generous: the test machine may be busy


def binary(name: str) -> str:
    found = shutil.which(name) or (CACHE and shutil.which(name, path=str(CACHE)))
    if found is None:
        pytest.skip(f"needs {name}: neither on the path nor in {CACHE}; `make prometheus` fetches it")
    return found


class Prometheus:
    """A Prometheus process that scrapes one server every second."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
            "scrape_configs:\n"
            "  - job_name: foldserve\n"
            f"    static_configs: [{{targets: ['{server.http_address}']}}]\n"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [binary("prometheus"), f"--config.file={config}", f"--web.listen-address={self.address}"]
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                ending_with_us([*command, f"--storage.tsdb.path={folder / 'data'}"]),
                stdout=log,
                stderr=log,
                cwd=folder,
            )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that an expression comes to now; nothing while it does not answer yet."""
        url = f"http://{self.address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                answer = json.load(response)
        except OSError:
            return []
        assert answer["status"] == "success", answer
        vector: list[dict[str, Any]] = answer["data"]["result"]
        return vector

    def number(self, expression: str) -> float | None:
        """The value of an expression that comes to one series at most."""
        vector = self.query(expression)
        assert len(vector) <= 1, vector
        return float(vector[0]["value"][1]) if vector else None


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server: the transport does not matter for scraping."""
    with ServerProcess(repository, tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def prometheus(server: ServerProcess, tmp_path: Path) -> Iterator[Prometheus]:
    process = Prometheus(server, tmp_path)
    yield process
    process.close()


def wait_for(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < give_up_s, what()
        time.sleep(0.1)


def settled(prometheus: Prometheus, expressions: list[str]) -> dict[str, float]:
    """What the expressions come to once a scrape has begun after this was called."""
    scraped = 'timestamp(up{job="foldserve"})'
    last = prometheus.number(scraped) or 0
    # The next one may have begun already; the one after that has not.
    for _ in range(2):
        wait_for(lambda: (prometheus.number(scraped) or 0) > last, lambda: last)  # noqa: B023  # at once
        last = prometheus.number(scraped) or 0
    return {expression: prometheus.number(expression) or 0 for expression in expressions}


@pytest.mark.prometheus
def test_prometheus_sees_exactly_what_was_sent(
    server: ServerProcess, network: TinyNetwork, prometheus: Prometheus
) -> None:
    """The growth between two scrapes by Prometheus is exactly the requests sent between them."""
    tiny = '{model="tiny",version="2",method="ModelInfer",code="OK"}'
    server.infer(network.random_images(1))
    wait_for(
        lambda: (
            prometheus.number("up") == 1 and prometheus.number(f"foldserve_requests_total{tiny}") is not None
        ),
        lambda: prometheus.query("up"),
    )
    expected = {
        f"foldserve_requests_total{tiny}": 150,
        'sum(foldserve_requests_total{code="NOT_FOUND"})': 7,
        'foldserve_rows_total{model="tiny",version="2"}': 450,
        'foldserve_execution_rows_sum{model="tiny",version="2"}': 450,
        'foldserve_request_duration_seconds_count{model="tiny",version="2"}': 150,
        'foldserve_queue_duration_seconds_bucket{model="tiny",version="2",le="+Inf"}': 150,
    }
    before = settled(prometheus, list(expected))
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda _: server.infer(network.random_images(3)), range(150)))
    for _ in range(7):
        status_of(lambda: server.infer(network.random_images(1), "nobody"))

    def grown() -> dict[str, float]:
        return {
            expression: (prometheus.number(expression) or 0) - before[expression] for expression in expected
        }

    wait_for(lambda: grown() == expected, lambda: (grown(), expected))
    quantile = (
        'histogram_quantile(0.5, sum by (le) (foldserve_request_duration_seconds_bucket{model="tiny"}))'
    )
    assert 0 < (prometheus.number(quantile) or 0) < 10
    (info,) = prometheus.query('foldserve_model_info{model="tiny",version="2"}')
    assert info["metric"]["provider"] == PROVIDER
    assert len(info["metric"]["sha256"]) == 64
    assert (prometheus.number("sum(scrape_samples_scraped)") or 0) > 100


@pytest.mark.prometheus
def test_promtool_accepts_the_metrics(server: ServerProcess) -> None:
    _, text = get(server, "/metrics")
    checked = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
