"""Runs ``foldserve export``: publishes a trained network as the next version in a model repository."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.artifact.numbering import last_version
from foldserve.export.calibrate import calibrate
from foldserve.export.config import check_name
from foldserve.export.errors import ParityError, SourceError
from foldserve.export.graph.build import BuiltModel, build_model
from foldserve.export.graph.release_memory import release_memory, trim_memory
from foldserve.export.precision.choose import ExactFile, choose_precision, try_precisions
from foldserve.export.publish import (
    check_writable,
    find_same,
    make_manifest,
    measure_classes,
    publish,
    save_rejected,
)
from foldserve.export.report import Report
from foldserve.export.sources.load import load_source
from foldserve.export.triton_files import check_triton_files, write_triton_files
from foldserve.export.verification.agreement import Agreement, check_agreement
from foldserve.export.verification.divergence import first_divergence
from foldserve.export.verification.golden_pairs import choose_golden, golden_count, make_golden, replay_golden
from foldserve.export.verification.parity import check_parity, largest_rounding, make_judge, open_sessions
from foldserve.export.verification.probabilities import check_logits, no_logits_text
from foldserve.export.verification.reference import batch_size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.artifact.format import Golden
    from foldserve.export.config import ExportConfig
    from foldserve.export.graph.model_file import ModelFile
    from foldserve.export.precision.choose import Choice
    from foldserve.export.sources.load import Source
    from foldserve.export.verification.comparison import Comparison
    from foldserve.runtime.session import Session

_REJECTED_IMAGE_COUNT = 32


def export_model(config: ExportConfig) -> int:
    """Fold, convert, verify and publish; return 0.

    Raises:
        ExportError, TrainingError: as `export_version`.
    """
    export_version(config)
    return 0


def export_version(config: ExportConfig) -> Path:
    """Fold, convert, verify and publish; return the version's folder, or that of one that is the same.

    Raises:
        ExportError: it cannot be exported, or the file does not agree with the network; nothing is published.
        TrainingError: the checkpoint or its data set cannot be read.
    """
    report = Report()
    if not (config.skip_same and config.repository.is_dir()):  # which may have this model already
        check_writable(config.repository)
    source = load_source(config)
    name = _model_name(config, source)
    model_folder = config.repository / name
    if config.triton:
        check_triton_files(model_folder)
    report.started(source, name)
    source, calibration = calibrate(config, source, report.counting)
    if calibration is not None:
        report.calibrated(calibration)
    built = build_model(source.network.to_graph(), source.metadata)
    release_memory()
    if built.no_logits and not config.as_logits:
        raise SourceError(no_logits_text(built.no_logits))
    report.folded(built)
    if config.precision == "fp32" and (same := _find_same(config, model_folder, built.file, report)):
        return _finish(config, same, source, report)
    check_writable(model_folder)
    last_version(model_folder)  # before minutes of verification: the next number can be told
    built, proof = _prove_or_build_again(config, name, source, built, report)
    source.network.release_weights()
    expected, golden = proof.expected, proof.golden
    exact = ExactFile(built.content, golden, expected)
    trials = []
    for trial in try_precisions(config, source, exact, report.counting):
        report.tried(trial, config.max_accuracy_drop)
        trials.append(trial)
    choice = choose_precision(source, exact, trials)
    manifest = make_manifest(
        source,
        built,
        proof.session,
        comparisons=proof.comparisons,
        agreements=proof.agreements,
        golden=golden,
        precision=choice.precision,
    )
    if calibration is not None:
        manifest["calibration"] = calibration.to_manifest(expected, source.verification.labels)
    if same := _find_same(config, model_folder, choice, report):
        return _finish(config, same, source, report)
    manifest |= measure_classes(source.metadata.labels, expected, source.verification.labels)
    manifest |= {"license": config.license, "purpose": config.purpose}
    manifest |= choice.manifest
    version = publish(model_folder, choice.content, choice.golden, manifest, source.metadata)
    report.published(version, choice.content, choice.golden, config.repository, choice.precision)
    return _finish(config, version, source, report)


def _finish(config: ExportConfig, version: Path, source: Source, report: Report) -> Path:
    """Write what other servers need beside the versions, if it is wanted; return the version's folder."""
    if config.triton:
        report.wrote_for_triton(write_triton_files(version.parent, source.metadata))
    return version


def _find_same(
    config: ExportConfig, model_folder: Path, file: ModelFile | Choice, report: Report
) -> Path | None:
    """Return the version that already is this model, unless twins are to be published."""
    if not (config.skip_same and model_folder.is_dir()):  # a large file is not read for nothing
        return None
    version = find_same(model_folder, file.content)
    if version is not None:
        report.same(version)
    return version


def _model_name(config: ExportConfig, source: Source) -> str:
    try:
        return check_name(config.name or source.suggested_name)
    except ValueError as error:
        raise SourceError(f"{error}; give one with --name") from None


@dataclass(frozen=True)
class _Proof:
    """What was found out about a file that passed all checks.

    Attributes:
        session: of the file, on the CPU.
        comparisons, agreements: with the network.
        expected: the network's logits of all verification images.
        golden: golden pairs, replayed.
    """

    session: Session
    comparisons: list[Comparison]
    agreements: list[Agreement]
    expected: NDArray[np.float32]
    golden: Golden


def _prove_or_build_again(
    config: ExportConfig, name: str, source: Source, built: BuiltModel, report: Report
) -> tuple[BuiltModel, _Proof]:
    """Prove ``built``; if that fails, and what moved past a ReLU may be why, build and prove it without that.

    The bound of a ReLU that is rarely above 0 stands for a large number, which the layers behind subtract
    again: exact, but for rounding (docs/explanation/folding.md).

    Raises:
        ParityError: a check failed; the file and some images are kept.
    """
    if built.has_moved_clips:
        try:
            return built, _prove(source, built, report, as_logits=config.as_logits)
        except ParityError as error:
            traceback.clear_frames(error.__traceback__)  # closes the sessions, which hold all weights
            report.building_again()
        built = build_model(source.network.to_graph(), source.metadata, moves_clips=False)
        release_memory()
        report.folded(built)
    with _saving_rejected(config, name, built, source):
        return built, _prove(source, built, report, as_logits=config.as_logits)


def _prove(source: Source, built: BuiltModel, report: Report, *, as_logits: bool) -> _Proof:
    """Compare the file with the network, and make its golden pairs.

    Raises:
        ParityError: a check failed.
    """
    source.network.release_weights()
    sessions = open_sessions(built.file.loadable)
    trim_memory()
    comparisons, agreements, expected = _verify(source, sessions, report, as_logits=as_logits)
    golden = _make_golden(source, sessions, expected, comparisons)
    return _Proof(sessions[0], comparisons, agreements, expected, golden)


def _verify(
    source: Source,
    sessions: Sequence[Session],
    report: Report,
    *,
    as_logits: bool,
) -> tuple[list[Comparison], list[Agreement], NDArray[np.float32]]:
    """Compare the file with the network on every device present; return the network's logits too."""
    reference = source.network.reference()
    verification = source.verification
    comparisons = [
        comparison
        for session in sessions
        for comparison in check_parity(session, reference, verification.images, verification.kind)
    ]
    report.compared(comparisons, verification)
    with report.counting("accuracy", len(verification.images) * (1 + len(sessions))) as on_progress:
        expected = reference.logits(verification.images, on_progress)
        warning = "" if as_logits else check_logits(expected)
        agreements = [
            check_agreement(
                session,
                expected,
                verification.images,
                verification.labels,
                judge=make_judge(reference, comparisons),
                on_progress=on_progress,
            )
            for session in sessions
        ]
    report.agreed(agreements, verification)
    if warning:
        report.warned(warning)
    return comparisons, agreements, expected


def _make_golden(
    source: Source,
    sessions: Sequence[Session],
    expected: NDArray[np.float32],
    comparisons: Sequence[Comparison],
) -> Golden:
    """Choose golden pairs, compute their logits, and replay them as a server does, on each device present."""
    verification = source.verification
    count = golden_count(source.metadata.image.shape, len(source.metadata.labels))
    chosen = choose_golden(verification.labels, len(verification.images), count)
    golden = make_golden(
        sessions[0],
        expected[chosen],
        verification.images[chosen],
        rounding=largest_rounding(comparisons),
        synthetic=verification.synthetic,
    )
    # The largest batches were compared before. At this size the images were run as verification images.
    most = max(entry.batch_size for entry in comparisons)
    replay_golden(sessions, golden, min(most, batch_size_of(verification.images)))
    return golden


@contextlib.contextmanager
def _saving_rejected(config: ExportConfig, name: str, built: BuiltModel, source: Source) -> Iterator[None]:
    """If a check fails, save the file and some images, and name the first layer that differs."""
    try:
        yield
    except ParityError as error:
        traceback.clear_frames(error.__traceback__)  # closes the sessions, which hold all weights
        images = source.verification.images[:_REJECTED_IMAGE_COUNT]
        message = f"{error}; {first_divergence(source.network.layer_recorder(), built.file, images)}"
        try:
            folder = save_rejected(config.repository, name, built.content, images, message)
        except OSError:
            raise ParityError(message) from error
        raise ParityError(f"{message}; the rejected file is in {folder}") from error
