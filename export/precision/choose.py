"""Chooses the precision to publish: fp32, or a lower one that keeps the accuracy and is faster.

fp16 and int8 are made from the verified fp32 file. int8 is published only if it loses at most
``--max-accuracy-drop`` points on the validation images and is faster on this machine at each of
``--batch-sizes``; fp16, asked for by name, only has to keep the accuracy. A refusal is shown with its figures
and written into the manifest, and fp32 is published.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.errors import ArtifactError
from foldserve.export.errors import ParityError, PrecisionError
from foldserve.export.precision.calibration import load_calibration
from foldserve.export.precision.fp16 import to_fp16
from foldserve.export.precision.judgement import drop_interval, interval_warning, network_warnings
from foldserve.export.precision.quantize import layer_names
from foldserve.export.precision.sensitivity import quantize_within
from foldserve.export.precision.speed import WORTHWHILE, measure_speed, thread_counts
from foldserve.export.verification.parity import run_logits
from foldserve.export.verification.reduced_precision import check_reduced_precision
from foldserve.export.verification.tolerances import FP16_UNIT, fp16_tolerance, int8_tolerance
from foldserve.runtime.session import Session, cuda_is_present

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from foldserve.artifact.format import Golden
    from foldserve.export.config import ExportConfig
    from foldserve.export.precision.calibration import CalibrationImages
    from foldserve.export.precision.speed import Speed
    from foldserve.export.sources.load import Source
    from foldserve.export.verification.reduced_precision import ReducedParity

    # Shows the progress of a step, given its name and part count; yields a function that takes parts done.
    Counting = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class ExactFile:
    """The verified fp32 file, its golden pairs, and the network's logits of the verification images."""

    content: bytes
    golden: Golden
    expected: NDArray[np.float32]


@dataclass(frozen=True)
class Trial:
    """Measurements of a lower precision; ``reasons`` say why it is not published (empty: it may be).

    ``drop_interval`` is the 95 % interval of `drop`. ``are_labels_true`` tells whether the images that judge
    have labels; else the network's own answers are used as such.
    """

    precision: str
    reasons: tuple[str, ...]
    content: bytes = b""
    image_count: int = 0
    image_origin: str = ""
    calibration_count: int = 0
    are_labels_true: bool = True
    accuracy_before: float = 0.0
    accuracy_after: float = 0.0
    drop_interval: tuple[float, float] = (0.0, 0.0)
    warnings: tuple[str, ...] = ()
    tolerance: float = 0.0
    measured_error: float = 0.0
    in_int8: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    noise: tuple[tuple[str, float], ...] = ()
    speeds: tuple[Speed, ...] = ()
    parity: ReducedParity | None = None

    @property
    def drop(self) -> float:
        """Points of accuracy lost on the validation images."""
        return 100 * (self.accuracy_before - self.accuracy_after)

    @property
    def speedup(self) -> float:
        """Speed relative to fp32: the geometric mean over all measurements."""
        return geometric_mean(speed.ratio for speed in self.speeds) if self.speeds else 0.0

    def to_manifest(self) -> dict[str, Any]:
        """Return the measurements as an entry of the manifest."""
        return {
            "precision": self.precision,
            "accepted": not self.reasons,
            "reasons": list(self.reasons),
            "validation": {
                "image_count": self.image_count,
                "images": self.image_origin,
                "calibration_image_count": self.calibration_count,
                "labels": "known" if self.are_labels_true else "the network's own answers",
                "accuracy_before": self.accuracy_before,
                "accuracy_after": self.accuracy_after,
                "drop_points": self.drop,
                "drop_points_95": list(self.drop_interval),
                "warnings": list(self.warnings),
            },
            "max_abs_err": self.measured_error,
            "layers_in_int8": list(self.in_int8),
            "layers_left_in_float": list(self.in_float) if self.precision == "int8" else [],
            "noise_to_signal_by_layer": dict(self.noise),
            "speed": [asdict(speed) | {"ratio": speed.ratio} for speed in self.speeds],
        }


@dataclass(frozen=True)
class Choice:
    """The file to publish; ``manifest`` replaces entries of the fp32 file's and lists every trial."""

    precision: str
    content: bytes
    golden: Golden
    manifest: dict[str, Any]


def try_precisions(
    config: ExportConfig, source: Source, exact: ExactFile, counting: Counting
) -> Iterator[Trial]:
    """Try each precision that ``config.precision`` asks for; yields nothing for fp32.

    Raises:
        TrainingError: the data set cannot be read.
    """
    if config.precision == "fp32":
        return
    try:
        images = load_calibration(config, source.verification, exact.expected)
    except PrecisionError as error:
        for precision in _candidates(config):
            yield Trial(precision, (str(error),))
        return
    for precision in _candidates(config):
        yield _try(precision, config, source, exact, images=images, counting=counting)


def choose_precision(source: Source, exact: ExactFile, trials: Sequence[Trial]) -> Choice:
    """Return the fastest of the accepted ``trials``; ``exact`` if there is none."""
    told = {"precision_trials": [trial.to_manifest() for trial in trials]} if trials else {}
    best = max(
        (trial for trial in trials if not trial.reasons), key=lambda trial: trial.speedup, default=None
    )
    if best is None or best.parity is None:
        return Choice("fp32", exact.content, exact.golden, told)
    return Choice(best.precision, best.content, best.parity.golden, told | _entries(source, best))


def _candidates(config: ExportConfig) -> tuple[str, ...]:
    if config.precision != "auto":
        return (config.precision,)
    # CPUs convert fp16 to fp32 and back to compute, which cannot be faster.
    return ("fp16", "int8") if cuda_is_present() else ("int8",)


def _try(
    precision: str,
    config: ExportConfig,
    source: Source,
    exact: ExactFile,
    *,
    images: CalibrationImages,
    counting: Counting,
) -> Trial:
    try:
        return _measure(precision, config, source, exact, images=images, counting=counting)
    except (PrecisionError, ArtifactError) as error:
        return Trial(precision, (str(error),))


def _measure(
    precision: str,
    config: ExportConfig,
    source: Source,
    exact: ExactFile,
    *,
    images: CalibrationImages,
    counting: Counting,
) -> Trial:
    probe = AccuracyProbe(exact.content, images)
    in_int8: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    noise: tuple[tuple[str, float], ...] = ()
    if precision == "fp16":
        content = to_fp16(exact.content)
    else:
        with counting("measuring layers", len(layer_names(exact.content))) as on_layer:
            quantized = quantize_within(exact.content, images, probe.drop, config.max_accuracy_drop, on_layer)
        content, in_int8, in_float = quantized.content, quantized.in_int8, quantized.in_float
        noise = tuple(quantized.noise.items())
    after, error = probe.measure(content)
    interval = probe.drop_interval(content)
    labels = source.metadata.labels
    warnings = [
        *network_warnings(probe.predictions, images.labels, labels, are_true=images.are_labels_true),
        interval_warning(len(images.labels), interval, config.max_accuracy_drop),
    ]
    tolerance, unit = fp16_tolerance(exact.expected), FP16_UNIT
    if precision == "int8":
        tolerance, unit = int8_tolerance(exact.expected, error), 0.0
    with counting("measuring speed", len(config.batch_sizes) * len(thread_counts())) as on_speed:
        shape = source.metadata.image.shape
        speeds = measure_speed(exact.content, content, shape, config.batch_sizes, on_speed)
    reasons = _reasons(100 * (probe.accuracy - after), speeds, config, precision, in_int8)
    parity = None
    try:
        parity = check_reduced_precision(
            content,
            source.verification.images,
            source.verification.labels,
            expected=exact.expected,
            golden=exact.golden,
            tolerance=tolerance,
            unit=unit,
        )
    except ParityError as failed:
        reasons.append(str(failed).removesuffix("; nothing was published"))
    return Trial(
        precision=precision,
        reasons=tuple(reasons),
        content=content,
        image_count=len(images.labels),
        image_origin=images.dataset,
        calibration_count=len(images.training),
        are_labels_true=images.are_labels_true,
        accuracy_before=probe.accuracy,
        accuracy_after=after,
        drop_interval=interval,
        warnings=tuple(filter(None, warnings)),
        tolerance=tolerance,
        measured_error=error,
        in_int8=in_int8,
        in_float=in_float,
        noise=noise,
        speeds=tuple(speeds),
        parity=parity,
    )


class AccuracyProbe:
    """Measures accuracy and logit errors of files on the validation images, against the fp32 file."""

    def __init__(self, exact: bytes, images: CalibrationImages) -> None:
        self._exact = exact
        self._images = images
        self._logits = self._run(exact)
        self.predictions = self._logits.argmax(axis=1)
        self.accuracy = self._accuracy(self._logits)

    def measure(self, content: bytes) -> tuple[float, float]:
        """Return a file's accuracy, and the largest difference of its logits from the fp32 file's.

        The difference covers the training images too, since there may be few validation images.
        """
        logits = self._run(content)
        session, exact = Session(content, device="cpu"), Session(self._exact, device="cpu")
        training = run_logits(session, self._images.training) - run_logits(exact, self._images.training)
        error = max(float(np.abs(logits - self._logits).max()), float(np.abs(training).max()))
        return self._accuracy(logits), error

    def drop(self, content: bytes) -> float:
        """Return the accuracy that a file loses, in percentage points."""
        return 100 * (self.accuracy - self._accuracy(self._run(content)))

    def drop_interval(self, content: bytes) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy that a file loses, in percentage points."""
        before, after = (
            logits.argmax(axis=1) == self._images.labels for logits in (self._logits, self._run(content))
        )
        return drop_interval(before, after)

    def _run(self, content: bytes) -> NDArray[np.float32]:
        return run_logits(Session(content, device="cpu"), self._images.validation)

    def _accuracy(self, logits: NDArray[np.float32]) -> float:
        return float((logits.argmax(axis=1) == self._images.labels).mean())


def _reasons(
    drop: float, speeds: Sequence[Speed], config: ExportConfig, precision: str, in_int8: Sequence[str]
) -> list[str]:
    reasons = []
    if drop > config.max_accuracy_drop:
        layers = f", even with only {', '.join(in_int8)} in int8" if precision == "int8" else ""
        reasons.append(
            f"it loses {drop:.2f} points of accuracy{layers} (allowed: {config.max_accuracy_drop:g})"
        )
    must_be_faster = precision == "int8" or config.precision == "auto"
    slow = [speed for speed in speeds if not speed.ratio >= WORTHWHILE]
    if must_be_faster and slow:
        reasons.append(f"it is not faster than fp32 here: {', '.join(map(str, slow))}")
    return reasons


def _entries(source: Source, trial: Trial) -> dict[str, Any]:
    """Return the manifest's entries about the published file, which replace those about the fp32 file."""
    parity = trial.parity
    assert parity is not None
    agreement = parity.agreements[0]
    how = (
        "a fixed fraction of the largest logit"
        if trial.precision == "fp16"
        else f"twice the largest difference on {trial.image_count} validation images and "
        f"{trial.calibration_count} calibration images"
    )
    return {
        "precision": trial.precision,
        "parity": parity.to_manifest(),
        "accuracy": {
            "images": source.verification.origin,
            "image_count": agreement.image_count,
            "before": agreement.accuracy_before,
            "after": agreement.accuracy_after,
        },
        "golden": {
            "count": len(parity.golden.images),
            "synthetic": parity.golden.synthetic,
            "source": source.verification.origin,
            "reference_tolerance": parity.golden.reference_tolerance,
            "reference_tolerance_is": how,
            "runtime_tolerance": parity.golden.runtime_tolerance,
        },
    }
