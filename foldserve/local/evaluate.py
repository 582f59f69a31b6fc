"""Carries out `foldserve evaluate`: judges a version on labelled images, and compares it with another."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from foldserve.local.answers import UNKNOWN
from foldserve.local.judging import Judgement, with_classes
from foldserve.local.label_names import LabelIndex
from foldserve.local.local_model import LocalModel, answer_all
from foldserve.local.report import EvaluationFolder, make_page, percent
from foldserve.local.sources import open_labelled, print_left_out
from foldserve.tables.errors import DataError
from foldserve.terminal import Terminal
from foldserve.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.local.config import EvaluateConfig
    from foldserve.local.measures import Measures
    from foldserve.local.mistakes import Mistake

_CLASSES_SHOWN = 50
_SIGNIFICANT = 0.05
_NO_SPLIT = "none: images that the model was trained on may be among them"


def evaluate(config: EvaluateConfig) -> int:
    """Print the measures, write the report if asked to; return 1 if the accuracy is below the one asked for.

    Raises:
        DataError: the data cannot be used, images are broken and not to be skipped, or the other version has
            other labels.
        OutputError: the report exists, or cannot be written.
        ArtifactError: a version does not prove itself.
    """
    with contextlib.ExitStack() as stack:
        folder = None
        if config.out is not None:
            folder = stack.enter_context(EvaluationFolder(config.out, overwrite=config.overwrite))
        models = [stack.enter_context(_open(config, path)) for path in _paths(config)]
        judged = Judgement(models, min_confidence=config.min_confidence, worst_count=config.worst)
        model, measures = models[0], judged.measures[0]
        source = open_labelled(
            config.data, model.labels, config.path_column, config.label_column, split=config.split
        )
        items = with_classes(source.items, LabelIndex(model.labels, source.label_names))
        started_s = time.monotonic()
        with Terminal(Console(stderr=True)).counting_on("evaluating") as advance:
            for answered in answer_all(models, items):
                rows = judged.add(answered)
                if folder is not None:
                    folder.add(rows)
                advance(len(answered.items))
        images_per_s = judged.image_count / (time.monotonic() - started_s)
        print_left_out(source)
        _report_broken(judged, skip_broken=config.skip_broken)
        facts = [
            ("model", f"{model.name} {model.version}"),
            ("sha256", model.hash),
            ("images", f"{judged.image_count:,} of {source.place}"),
            ("split", source.split or _NO_SPLIT),
            *_figures(measures, config.min_confidence),
            ("images/s", f"{images_per_s:,.0f}"),
            *_comparison(judged, models),
        ]
        _print(facts, measures, judged.worst())
        if folder is not None:
            title = f"{model.name} {model.version}"
            page = make_page(title, facts, measures, model.labels, judged.worst())
            folder.finish(_to_json(models, judged, images_per_s) | {"split": source.split or None}, page)
            print(f"{'report':<11} {config.out}/report.html, metrics.json, predictions.csv")
    return _verdict(config, measures)


def _paths(config: EvaluateConfig) -> list[Path]:
    """Return the folder of the model to judge, and of the one to compare it with."""
    if config.against is None:
        return [config.model]
    if not config.against.isdigit():
        return [config.model, Path(config.against)]
    is_version = config.model.resolve().name.isdigit()
    return [config.model, (config.model.resolve().parent if is_version else config.model) / config.against]


def _open(config: EvaluateConfig, path: Path) -> LocalModel:
    return LocalModel(
        path, device=config.device, batch_size=config.batch_size, load_timeout_s=config.load_timeout_s
    )


def _report_broken(judged: Judgement, *, skip_broken: bool) -> None:
    """List the images that cannot be used.

    Raises:
        DataError: there are some and they are not to be skipped, or there are no others.
    """
    count, total = judged.broken_count, judged.broken_count + judged.image_count
    for line in judged.broken:
        print(f"broken: {line}", file=sys.stderr)
    if count > len(judged.broken):
        print(f"broken: {count - len(judged.broken):,} more", file=sys.stderr)
    if judged.image_count == 0:
        raise DataError(f"none of the {total:,} images can be used ({judged.broken[0]})")
    if count and not skip_broken:
        raise DataError(
            f"{count:,} of {total:,} images cannot be used ({judged.broken[0]}); repair or remove them, or "
            "leave them out with --skip-broken"
        )


def _figures(measures: Measures, min_confidence: float) -> list[tuple[str, str]]:
    figures = [("accuracy", percent(measures.accuracy))]
    if measures.top_accuracy is not None:
        figures.append(("top-5", percent(measures.top_accuracy)))
    figures.append(("macro-F1", percent(measures.macro_f1)))
    figures.append(("calibration", f"expected calibration error {percent(measures.calibration_error)}"))
    if min_confidence:
        share = measures.unknown_count / measures.count
        below = f"{measures.unknown_count:,} images ({share:.1%}) below {min_confidence:g}"
        figures.append((UNKNOWN, f"{below}, counted as mistakes"))
    return figures


def _comparison(judged: Judgement, models: Sequence[LocalModel]) -> list[tuple[str, str]]:
    if len(models) == 1:
        return []
    names = [f"{model.name} {model.version}" for model in models]
    other, paired = judged.measures[1], judged.paired
    is_clear = paired.p_value < _SIGNIFICANT
    return [
        (
            "against",
            f"{names[1]}: accuracy {percent(other.accuracy)}, macro-F1 {percent(other.macro_f1)}, "
            f"calibration error {percent(other.calibration_error)}",
        ),
        (
            "McNemar",
            f"only {names[0]} is right on {paired.only_first:,} images, only {names[1]} on "
            f"{paired.only_second:,}; p = {paired.p_value:.3g}: the difference "
            f"{'is more than chance' if is_clear else 'may be chance'}",
        ),
    ]


def _print(facts: Sequence[tuple[str, str]], measures: Measures, mistakes: Sequence[Mistake]) -> None:
    for name, value in facts:
        print(f"{name:<11} {escape_controls(value)}")
    every = [each for each in measures.classes() if each.image_count]
    classes = every[:_CLASSES_SHOWN]
    width = max([5, *(len(escape_controls(each.label)) for each in classes)])
    print(f"{'label':<{width}}  images  precision  recall      F1")
    for each in classes:
        print(
            f"{escape_controls(each.label):<{width}}  {each.image_count:>6,}  {percent(each.precision):>9}  "
            f"{percent(each.recall):>6}  {percent(each.f1):>6}"
        )
    if len(every) > len(classes):
        print(f"and {len(every) - len(classes):,} more classes, which --out writes")
    for mistake in mistakes:
        taken = f"{mistake.label} taken for {mistake.prediction}, {mistake.probability:.1%}"
        print(escape_controls(f"{'mistake':<11} {mistake.name}: {taken}"))


def _to_json(models: Sequence[LocalModel], judged: Judgement, images_per_s: float) -> dict[str, Any]:
    entries = [_measures_to_json(*each) for each in zip(models, judged.measures, strict=True)]
    content = entries[0] | {"broken_count": judged.broken_count, "images_per_s": images_per_s}
    if len(models) > 1:
        content["against"] = entries[1]
        content["mcnemar"] = {
            "only_first_right": judged.paired.only_first,
            "only_second_right": judged.paired.only_second,
            "p_value": judged.paired.p_value,
        }
    return content


def _measures_to_json(model: LocalModel, measures: Measures) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.version,
        "sha256": model.hash,
        "image_count": measures.count,
        "unknown_count": measures.unknown_count,
        "accuracy": measures.accuracy,
        "top_5_accuracy": measures.top_accuracy,
        "macro_f1": measures.macro_f1,
        "expected_calibration_error": measures.calibration_error,
        "reliability": measures.reliability.to_json(),
        # JSON has no NaN, which is not equal to itself.
        "classes": [
            {key: value if value == value else None for key, value in asdict(each).items()}  # noqa: PLR0124
            for each in measures.classes()
        ],
    }


def _verdict(config: EvaluateConfig, measures: Measures) -> int:
    if config.min_accuracy is None or measures.accuracy >= config.min_accuracy:
        return 0
    print(
        f"foldserve evaluate: the accuracy is {measures.accuracy:.4f}; --min-accuracy asks for "
        f"{config.min_accuracy:g}",
        file=sys.stderr,
    )
    return 1
