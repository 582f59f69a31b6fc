"""Prints the progress of an export: one line per step, and at the end the next command."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console

from foldserve.artifact.promotion import default_version, read_promotions
from foldserve.artifact.versions import list_versions
from foldserve.errors import ArtifactError
from foldserve.export.verification.parity import has_float64_reference
from foldserve.runtime.session import CPU_PROVIDER
from foldserve.terminal import Terminal, own_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from foldserve.artifact.format import Golden
    from foldserve.export.calibrate import Calibration
    from foldserve.export.graph.build import BuiltModel
    from foldserve.export.precision.choose import Trial
    from foldserve.export.sources.load import Source, VerificationImages
    from foldserve.export.verification.agreement import Agreement
    from foldserve.export.verification.comparison import Comparison

_WIDTH = 10


class Report:
    """Prints one line or more to standard output after each step."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._terminal = Terminal(self._console)

    def counting(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show the progress of a long step: a bar on a terminal, else a line now and then."""
        return self._terminal.counting(f"{name:<{_WIDTH}}", total)

    def started(self, source: Source, name: str) -> None:
        """Print the source of the export, and its remarks."""
        self._line("export", f"{name}: {source.summary}")
        for remark in source.remarks:
            self._line("", remark)

    def calibrated(self, calibration: Calibration) -> None:
        """Print the temperature and the calibration errors, or why none was fitted."""
        if calibration.reason:
            self._line("calibrate", f"the temperature stays 1: {calibration.reason}")
            return
        self._line(
            "calibrate",
            f"temperature {calibration.temperature:g}: expected calibration error "
            f"{calibration.error_before:.2%} before and {calibration.error_after:.2%} after, on "
            f"{calibration.image_count:,} {calibration.images}",
        )

    def folded(self, built: BuiltModel) -> None:
        """Print the outcome for each batch norm, with the reason if it was not folded."""
        counts = Counter(fold.action for fold in built.folds)
        for index, fold in enumerate(built.folds):
            self._line("fold" if index == 0 else "", f"{fold.name}: {fold.action}, {fold.reason}")
        self._line(
            "" if built.folds else "fold",
            f"{counts['folded']} folded, {counts['rewritten']} rewritten, no batch norm left",
        )

    def compared(self, comparisons: Sequence[Comparison], verification: VerificationImages) -> None:
        """Print the largest difference between file and network."""
        worst = max(comparisons, key=lambda comparison: comparison.max_abs_err / comparison.tolerance)
        batches = ", ".join(
            str(size) for size in sorted({comparison.batch_size for comparison in comparisons})
        )
        self._line(
            "parity",
            f"largest logit difference {worst.max_abs_err:.2g} (allowed {worst.tolerance:.2g}), "
            f"batches {batches}, random and {verification.kind} images, {_providers(comparisons)}",
        )
        if not has_float64_reference(comparisons):
            self._line("", "no float64 reference: the network cannot be computed in float64")

    def agreed(self, agreements: Sequence[Agreement], verification: VerificationImages) -> None:
        """Print how well file and network agree on the verification images."""
        for agreement in agreements:
            before, after = agreement.accuracy_before, agreement.accuracy_after
            known = before is not None and after is not None
            accuracy = f", accuracy {before:.2%} before and {after:.2%} after" if known else ""
            self._line(
                "accuracy",
                f"{agreement.image_count:,} {verification.origin}: {_predictions(agreement)}{accuracy} "
                f"({agreement.provider})",
            )

    def building_again(self) -> None:
        """Say that the file is built again without what may have made it fail."""
        self._line(
            "parity",
            "the file does not agree with the network, perhaps by rounding alone: it is built again, with "
            "each batch norm before a ReLU as one multiplication and one addition",
        )

    def warned(self, text: str) -> None:
        """Print a warning about the previous line."""
        self._line("", text)

    def tried(self, trial: Trial, most_drop: float) -> None:
        """Print the measurements of a lower precision, and why it is not published if it is not."""
        title = "precision"
        if trial.image_count:
            lines = [
                f"{_accuracies(trial)} on {trial.image_count:,} {_judging(trial)}: "
                f"{-trial.drop:+.2f} points (allowed -{most_drop:g}; 95 % interval "
                f"{-trial.drop_interval[1]:+.2f} to {-trial.drop_interval[0]:+.2f})",
                f"against fp32: {', '.join(map(str, trial.speeds))}",
            ]
            if trial.precision == "int8":
                kept = f"; in float: {', '.join(trial.in_float)}" if trial.in_float else ""
                lines.insert(0, f"in int8: {', '.join(trial.in_int8)}{kept}")
            if trial.precision == "fp16" and trial.speedup < 1:
                on_cpu = any(speed.provider == CPU_PROVIDER for speed in trial.speeds)
                reason = "CPUs convert fp16 to fp32 and back" if on_cpu else "the network is too small"
                lines.append(f"not faster here: {reason}; half the size")
            lines += trial.warnings
            for line in lines:
                self._line(title, f"{trial.precision} {line}" if title else line)
                title = ""
        for reason in trial.reasons:
            self._line(title, f"{trial.precision} is not published, fp32 is: {reason}")

    def same(self, version: Path) -> None:
        """Print that a version already is this model."""
        self._line(
            "unchanged",
            f"{version}{os.sep} already is exactly this model; nothing was published (--no-skip-same "
            "publishes it again)",
        )
        self._how_to_promote(version)

    def published(
        self, version: Path, content: bytes, golden: Golden, repository: Path, precision: str
    ) -> None:
        """Print where the version is, and the command that serves it."""
        kind = "synthetic images" if golden.synthetic else "real images"
        self._line(
            "golden", f"{len(golden.images)} pairs of {kind} and logits, replayed by the server at load"
        )
        self._line("published", f"{version}{os.sep} ({len(content) / 1024:,.0f} KiB model, {precision})")
        self._line("next", f"{own_command()} serve --repository {repository}")
        self._how_to_promote(version)

    def _how_to_promote(self, version: Path) -> None:
        """Print that another version answers requests that name none, and the command that changes it."""
        folder = version.parent
        try:
            default = default_version(list_versions(folder), read_promotions(folder))
        except ArtifactError:  # a server says what is wrong with it
            return
        if default != int(version.name):
            self._line("promote", f"version {default} answers requests that name none; this one does after")
            self._line(
                "",
                f"{own_command()} models promote {folder.name} {version.name} --repository {folder.parent}",
            )

    def wrote_for_triton(self, path: Path) -> None:
        """Print where the configuration for other servers is."""
        self._line("triton", f"{path}: Triton and OpenVINO Model Server serve the same folder")

    def verifying(self, version: Path, checkpoint: Path) -> None:
        """Print which version is compared with which checkpoint."""
        self._line("verify", f"{version}{os.sep} against {checkpoint}")

    def made_from(self, version: Path, checkpoint: Path) -> None:
        """Print that they agree."""
        self._line("ok", f"{version}{os.sep} was made from {checkpoint}")

    def not_made_from(self, checkpoint: Path, reason: str) -> None:
        """Print what differs."""
        self._line("FAILED", f"not made from {checkpoint}: {reason}")

    def _line(self, title: str, text: str) -> None:
        self._console.print(f"{title:<{_WIDTH}} {text}", soft_wrap=True, markup=False, highlight=False)


def _accuracies(trial: Trial) -> str:
    if trial.are_labels_true:
        before, after = f"{trial.accuracy_before:.2%}", f"{trial.accuracy_after:.2%}"
        return f"accuracy {before} in fp32 and {after} in {trial.precision}"
    return (
        f"{trial.accuracy_after:.2%} the same answers in {trial.precision} as in fp32 (there are no labels)"
    )


def _judging(trial: Trial) -> str:
    """Name the images that judge, and say of a folder's how many of the others calibrated."""
    if not trial.image_origin.startswith("images of "):
        return "validation images"
    return f"{trial.image_origin}, {trial.calibration_count:,} others calibrated"


def _predictions(agreement: Agreement) -> str:
    unclear_count = agreement.image_count - agreement.top1_compared
    if not agreement.top1_compared:
        return "no prediction is clear enough to compare (the two best logits are too close)"
    unclear = f" ({unclear_count:,} too close to tell)" if unclear_count else ""
    return f"{agreement.top1_agreement:.2%} the same predictions{unclear}"


def _providers(comparisons: Sequence[Comparison]) -> str:
    return " and ".join(dict.fromkeys(comparison.provider for comparison in comparisons))
