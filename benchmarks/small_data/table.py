"""Prints the rule's figures beside the best by hand, and says where the rule is behind."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.small_data.data_sets import DATA_SETS
from benchmarks.small_data.rows import RULE, Key, Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The rule is to be within so much of the best by hand.
MOST_BEHIND = 0.02


def print_table(rows: Mapping[Key, Row], data: Sequence[str], archs: Sequence[str]) -> int:
    """Print a Markdown table with a line per data set and network; return how many are flagged.

    The best by hand is the one that is best in validation; its accuracy is on the test images, as the rule's.
    """
    print(
        "| data | images to train on, to test; classes | network, pixels | largest class "
        "| rule: accuracy (macro-F1), steps | by hand: accuracy, of trials | settings | difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    flagged = 0
    for name in data:
        for arch in archs:
            rule = rows.get((name, arch, RULE))
            if rule is not None:
                by_hand = [row for key, row in rows.items() if key[:2] == (name, arch) and key[2] != RULE]
                line, is_flagged = _line(rule, by_hand)
                print(line)
                flagged += is_flagged
    return flagged


def is_beyond_trials(rule: Row) -> bool:
    """Return whether no trial by hand could show the rule to be behind, as it is nearly always right."""
    return 1 - rule.test_accuracy <= MOST_BEHIND


def verdict(rule: Row, by_hand: Sequence[Row]) -> tuple[Row | None, str, bool]:
    """Return the best by hand, how far the rule is from it, and whether that is too far or at chance."""
    best = max(by_hand, key=lambda row: row.validation_accuracy, default=None)
    if rule.is_at_chance:
        return best, "AT CHANCE", True
    if best is None:
        return (
            None,
            f"{100 * rule.test_accuracy - 100:+.1f} at worst" if is_beyond_trials(rule) else "",
            False,
        )
    difference = rule.test_accuracy - best.test_accuracy
    is_behind = difference < -MOST_BEHIND
    return best, f"{100 * difference:+.1f}{' BEHIND' if is_behind else ''}", is_behind


def _line(rule: Row, by_hand: Sequence[Row]) -> tuple[str, bool]:
    best, difference, is_flagged = verdict(rule, by_hand)
    deviation = math.sqrt(rule.test_accuracy * (1 - rule.test_accuracy) / rule.test_count)
    cells = [
        f"{rule.data}: {DATA_SETS[rule.data].described}" if rule.data in DATA_SETS else rule.data,
        f"{rule.train_count:,}, {rule.test_count:,}; {rule.classes}",
        f"`{rule.arch}`, {rule.side}",
        f"{rule.largest_class:.1%}",
        f"{rule.test_accuracy:.1%} ± {deviation:.1%} ({rule.test_macro_f1:.1%}), {rule.steps:,}",
        "not run" if best is None else f"{best.test_accuracy:.1%}, {len(by_hand)}",
        "" if best is None else best.settings,
        difference,
    ]
    return f"| {' | '.join(cells)} |", is_flagged
