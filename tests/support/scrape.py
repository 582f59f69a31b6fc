"""What a server's HTTP endpoint says, read by Prometheus's own parser."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.server_process import ServerProcess


class Samples:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """The sample of exactly these labels; 0 where there is none, as of a count that never began."""
        return self._values.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples that have these labels among theirs."""
        return sum(
            value
            for (found, own), value in self._values.items()
            if found == name and own >= set(labels.items())
        )

    def label_values(self, label: str) -> set[str]:
        """Every value that a label has anywhere."""
        return {text for _, labels in self._values for name, text in labels if name == label}


def get(server: ServerProcess, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Return the HTTP status and the text of a page."""
    request = urllib.request.Request(f"http://{server.http_address}{path}", headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(server: ServerProcess) -> Samples:
    """Return what /metrics says now."""
    status, text = get(server, "/metrics")
    assert status == 200
    return Samples(text)
