"""What the person at the terminal sees of an export: a line a step, and at the end what to do next."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console

from export.parity import has_referee

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from export.build import BuiltModel
    from export.parity import Agreement, Comparison
    from export.source import ProofImages, Source
    from serving.artifact import Golden

_WIDTH = 10


class Report:
    """Prints to standard output as the steps end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()

    def started(self, source: Source, name: str) -> None:
        """Say what is exported, and what was decided on the way."""
        self._line("export", f"{name}: {source.summary}")
        for remark in source.remarks:
            self._line("", remark)

    def folded(self, built: BuiltModel) -> None:
        """Say what became of the batch norms, and why where one could not be folded."""
        counts = Counter(fold.action for fold in built.folds)
        for index, fold in enumerate(built.folds):
            self._line("fold" if index == 0 else "", f"{fold.name}: {fold.action}, {fold.reason}")
        self._line(
            "" if built.folds else "fold",
            f"{counts['folded']} folded, {counts['rewritten']} rewritten, no batch norm left",
        )

    def compared(self, comparisons: Sequence[Comparison], proof: ProofImages) -> None:
        """Say how far file and network are apart."""
        worst = max(comparisons, key=lambda comparison: comparison.max_abs_err / comparison.tolerance)
        batches = ", ".join(
            str(size) for size in sorted({comparison.batch_size for comparison in comparisons})
        )
        self._line(
            "parity",
            f"largest logit difference {worst.max_abs_err:.2g} (allowed {worst.tolerance:.2g}), "
            f"batches {batches}, random and {proof.kind} images, {_providers(comparisons)}",
        )
        if not has_referee(comparisons):
            self._line("", "no float64 referee: the network cannot be computed in float64")

    def agreed(self, agreements: Sequence[Agreement], proof: ProofImages) -> None:
        """Say what both answer on the proof images."""
        for agreement in agreements:
            before, after = agreement.accuracy_before, agreement.accuracy_after
            known = before is not None and after is not None
            accuracy = f", accuracy {before:.2%} before and {after:.2%} after" if known else ""
            self._line(
                "accuracy",
                f"{agreement.image_count:,} {proof.origin}: {agreement.top1_agreement:.2%} the same "
                f"predictions{accuracy} ({agreement.provider})",
            )

    def same(self, version: Path) -> None:
        """Say that nothing new had to be published."""
        self._line("unchanged", f"{version}{os.sep} already is this very model; nothing was published")

    def published(self, version: Path, built: BuiltModel, golden: Golden, repository: Path) -> None:
        """Say where the version is and what to do with it."""
        kind = "synthetic images" if golden.synthetic else "real images"
        self._line(
            "golden", f"{len(golden.images)} pairs of {kind} and logits, replayed by the server at load"
        )
        self._line("published", f"{version}{os.sep} ({len(built.content) / 1024:,.0f} KiB model)")
        self._line("next", f"foldserve serve --repository {repository}")

    def _line(self, title: str, text: str) -> None:
        self._console.print(f"{title:<{_WIDTH}} {text}", soft_wrap=True, markup=False, highlight=False)


def _providers(comparisons: Sequence[Comparison]) -> str:
    return " and ".join(dict.fromkeys(comparison.provider for comparison in comparisons))
