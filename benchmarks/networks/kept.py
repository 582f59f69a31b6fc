"""Counts the batch norms that an export did not fold, by the reason that the manifest gives."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.networks.results import Row


def kept_by_kind(folding: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many entries of a manifest's ``folding`` are rewritten for each kind of reason."""
    return dict(Counter(kind_of(entry["reason"]) for entry in folding if entry["action"] == "rewritten"))


def kind_of(reason: str) -> str:
    """Return a reason without the names of layers and values: "Concat before it ...; Relu behind it ..."."""
    text = re.sub(r" \([^)]*\)", "", reason)  # of operations without weights: Concat (cat_3)
    text = re.sub(r"[\w.]+ (behind|before) it", _operation, text)
    return re.sub(r"\d+", "N", text)


def _operation(match: re.Match[str]) -> str:
    name = match[0].split()[0]
    is_operation = name[0].isupper() and name.isalnum()
    return f"{name if is_operation else 'layer'} {match[1]} it"


def kept(rows: Iterable[Row]) -> str:
    """Return a list of the kinds, those with most batch norms first, with the networks that they are in."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for kind, count in row.get("kept", {}).items():
            networks = found.setdefault(kind, {})
            networks[row["network"]] = max(count, networks.get(row["network"], 0))
    ordered = sorted(found.items(), key=lambda item: -sum(item[1].values()))
    return "\n".join(
        f"- {sum(networks.values())}: {kind}\n  "
        + ", ".join(f"{name} ({count})" for name, count in networks.items())
        for kind, networks in ordered
    )
