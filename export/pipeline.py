"""``foldserve export``: a trained network becomes the next version in a repository, or nothing happens."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from export.build import BuiltModel, build_model
from export.config import check_name
from export.divergence import first_divergence
from export.errors import ParityError, SourceError
from export.golden import choose_golden, golden_count, make_golden
from export.parity import (
    Agreement,
    Comparison,
    check_agreement,
    check_parity,
    largest_rounding,
    open_sessions,
)
from export.precision import ExactFile, choose_precision
from export.probabilities import check_logits, no_logits_text
from export.publish import check_writable, find_same, keep_evidence, make_manifest, publish
from export.reference import in_batches
from export.references import make_reference
from export.report import Report
from export.source import load_source
from serving.errors import ArtifactError
from serving.golden_replay import replay
from serving.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from export.config import ExportConfig
    from export.source import Source
    from serving.artifact import Golden
    from serving.session import Session

_REPLAY_BATCH_SIZE = 32
_EVIDENCE_COUNT = 32


def export_model(config: ExportConfig) -> int:
    """Fold, convert, verify and publish; return 0.

    Raises:
        ExportError: it cannot be exported, or the file does not agree with the network; nothing is published.
        TrainingError: the checkpoint or its data set cannot be read.
    """
    report = Report()
    if not config.skip_same:  # which may find nothing to write
        check_writable(config.repository)
    source = load_source(config)
    name = _model_name(config, source)
    model_folder = config.repository / name
    report.started(source, name)
    built = build_model(source.module.network, source.metadata)
    if built.no_logits and not config.as_logits:
        raise SourceError(no_logits_text(built.no_logits))
    report.folded(built)
    if config.skip_same and config.precision == "fp32" and _is_there(model_folder, built.content, report):
        return 0
    check_writable(model_folder)
    sessions = open_sessions(built.content)
    with _evidence(config, name, built, source):
        comparisons, agreements, expected = _verify(source, sessions, report, as_logits=config.as_logits)
        golden = _make_golden(source, sessions, expected, largest_rounding(comparisons))
    choice = choose_precision(config, source, ExactFile(built.content, golden, expected), report)
    manifest = make_manifest(
        source,
        built,
        sessions[0],
        comparisons=comparisons,
        agreements=agreements,
        golden=golden,
        precision=choice.precision,
    )
    if config.skip_same and _is_there(model_folder, choice.content, report):
        return 0
    version = publish(model_folder, choice.content, choice.golden, manifest | choice.manifest)
    report.published(version, choice.content, choice.golden, config.repository, choice.precision)
    return 0


def _is_there(model_folder: Path, content: bytes, report: Report) -> bool:
    version = find_same(model_folder, content)
    if version is not None:
        report.same(version)
    return version is not None


def _model_name(config: ExportConfig, source: Source) -> str:
    try:
        return check_name(config.name or source.suggested_name)
    except ValueError as error:
        raise SourceError(f"{error}; give one with --name") from None


def _verify(
    source: Source, sessions: Sequence[Session], report: Report, *, as_logits: bool
) -> tuple[list[Comparison], list[Agreement], NDArray[np.float32]]:
    """Compare the file with the network on every device present; return the network's logits too."""
    reference = make_reference(source.module)
    proof = source.proof
    comparisons = [
        comparison
        for session in sessions
        for comparison in check_parity(session, reference, proof.images, proof.kind)
    ]
    report.compared(comparisons, proof)
    with report.counting("accuracy", len(proof.images) * (1 + len(sessions))) as on_progress:
        expected = in_batches(reference.logits, proof.images, on_progress)
        warning = "" if as_logits else check_logits(expected)
        agreements = [
            check_agreement(session, expected, proof.images, proof.labels, on_progress=on_progress)
            for session in sessions
        ]
    report.agreed(agreements, proof)
    if warning:
        report.warned(warning)
    return comparisons, agreements, expected


def _make_golden(
    source: Source, sessions: Sequence[Session], expected: NDArray[np.float32], rounding: float
) -> Golden:
    """Choose golden pairs, answer them, and replay them as a server will, on every device present."""
    proof = source.proof
    count = golden_count(source.metadata.image.shape, len(source.metadata.labels))
    chosen = choose_golden(proof.labels, len(proof.images), count)
    golden = make_golden(
        sessions[0], expected[chosen], proof.images[chosen], rounding=rounding, synthetic=proof.synthetic
    )
    for session in sessions:
        try:
            replay(
                Runner(session).run_unchecked,
                golden,
                batch_size=_REPLAY_BATCH_SIZE,
                where=session.provider,
            )
        except ArtifactError as error:
            raise ParityError(f"{error}; nothing was published") from error
    return golden


@contextlib.contextmanager
def _evidence(config: ExportConfig, name: str, built: BuiltModel, source: Source) -> Iterator[None]:
    """On a failed check keep the file and some images, and say which layer differs first."""
    try:
        yield
    except ParityError as error:
        images = source.proof.images[:_EVIDENCE_COUNT]
        message = f"{error}; {first_divergence(source.module, built.content, images)}"
        try:
            folder = keep_evidence(config.repository, name, built.content, images, message)
        except OSError:
            raise ParityError(message) from error
        raise ParityError(f"{message}; the rejected file is in {folder}") from error
