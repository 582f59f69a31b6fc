"""Keeps the counters of unloaded versions, so that no Prometheus counter disappears or goes backwards."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foldserve.serving.model.counters import LOAD_BOUNDS_S, Counters, Histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.serving.model.loader import LoadOutcome
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.model.statistics import Statistics

# Unloaded versions whose counters are still reported: enough for any scraper to see their last values.
_KEPT_UNLOADED = 64
# A reloaded version has new counters, while the previous load may still finish its last requests.
_KEPT_LOADS = 2


class CounterHistory:
    """Holds the counters of every version, by model and version. May be used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._kept: dict[tuple[str, str], _Version] = {}  # in the order in which they last served

    def note(self, models: Sequence[ServedModel]) -> None:
        """Keep the counters of ``models``, all that serve now."""
        with self._changed:
            for model in models:
                names = (model.name, model.version_text)
                version = self._kept.pop(names, None) or _Version([])
                version.note(model.statistics)
                self._kept[names] = version
            serving = {(model.name, model.version_text) for model in models}
            unloaded = [names for names in self._kept if names not in serving]
            for names in unloaded[: max(0, len(unloaded) - _KEPT_UNLOADED)]:
                del self._kept[names]

    def counters(self) -> dict[tuple[str, str], Counters]:
        """Return the counters by model and version."""
        with self._changed:
            return {names: version.counters() for names, version in sorted(self._kept.items())}


@dataclass(slots=True)
class _Version:
    """Counters of one version: of its last loads, and the sum of those before."""

    loads: list[Statistics]
    before: Counters = field(default_factory=Counters)

    def note(self, statistics: Statistics) -> None:
        if statistics not in self.loads:
            self.loads.append(statistics)
            if len(self.loads) > _KEPT_LOADS:
                self.before.add(self.loads.pop(0).counters())

    def counters(self) -> Counters:
        total = Counters()
        total.add(self.before)
        for statistics in self.loads:
            total.add(statistics.counters())
        return total


class LoadCounts:
    """Counts load attempts by outcome, and their durations. May be used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._by_outcome: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, Histogram] = {}

    def count(self, outcome: LoadOutcome) -> None:
        """Count a load attempt that has ended."""
        with self._changed:
            self._by_outcome[outcome.name, "ready" if outcome.refusal is None else "refused"] += 1
            self._seconds.setdefault(outcome.name, Histogram(LOAD_BOUNDS_S)).observe(outcome.seconds)

    def by_outcome(self) -> dict[tuple[str, str], int]:
        """Return the number of attempts by model and outcome, "ready" or "refused"."""
        with self._changed:
            return dict(sorted(self._by_outcome.items()))

    def seconds(self) -> dict[str, Histogram]:
        """Return the durations in seconds by model."""
        copies = {}
        with self._changed:
            for name, histogram in sorted(self._seconds.items()):
                copies[name] = Histogram(LOAD_BOUNDS_S)
                copies[name].add(histogram)
        return copies
