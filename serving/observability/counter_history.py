"""Counts that outlive what they are of: of versions that serve no more, and of load attempts."""

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

# Versions that serve no more, whose counts are still shown: enough for any scraper to see their last state.
_KEPT_RETIRED = 64
# A version that is loaded anew is counted anew, while the one before may still finish its last requests.
_KEPT_LOADS = 2


class CounterHistory:
    """The tally of every version, by model and version; may be used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._kept: dict[tuple[str, str], _Version] = {}  # those that served last at the end

    def note(self, models: Sequence[ServedModel]) -> None:
        """Keep the counts of ``models``, which are all that serve now."""
        with self._changed:
            for model in models:
                names = (model.name, model.version_text)
                version = self._kept.pop(names, None) or _Version([])
                version.note(model.statistics)
                self._kept[names] = version
            serving = {(model.name, model.version_text) for model in models}
            retired = [names for names in self._kept if names not in serving]
            for names in retired[: max(0, len(retired) - _KEPT_RETIRED)]:
                del self._kept[names]

    def tallies(self) -> dict[tuple[str, str], Counters]:
        """Return what was counted."""
        with self._changed:
            return {names: version.counters() for names, version in sorted(self._kept.items())}


@dataclass(slots=True)
class _Version:
    """The counts of one version: of its last loads, and of those before together."""

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
    """How load attempts ended and how long they took; may be used from any thread."""

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
        """Return how many ended how, by model and outcome: "ready" or "refused"."""
        with self._changed:
            return dict(sorted(self._by_outcome.items()))

    def seconds(self) -> dict[str, Histogram]:
        """Return how long they took, by model."""
        copies = {}
        with self._changed:
            for name, histogram in sorted(self._seconds.items()):
                copies[name] = Histogram(LOAD_BOUNDS_S)
                copies[name].add(histogram)
        return copies
