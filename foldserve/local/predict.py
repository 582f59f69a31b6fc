"""Carries out `foldserve predict`: one row per image, in the order of the source."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from foldserve.local.answers import UNKNOWN, is_unknown
from foldserve.local.local_model import LocalModel, answer_all
from foldserve.local.output import RowFile, check_format, shown_name
from foldserve.local.sources import open_source, print_left_out
from foldserve.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foldserve.local.answers import Answered
    from foldserve.local.config import PredictConfig
    from foldserve.local.sources import Source


def predict(config: PredictConfig) -> int:
    """Write a row per image; return 0, or 1 if an image failed (its row has the error).

    Raises:
        DataError: the source cannot be used.
        OutputError: the output exists, or cannot be written.
        ArtifactError: the version does not prove itself.
    """
    check_format(config.out)
    with RowFile(config.out, resume=config.resume, overwrite=config.overwrite) as rows:
        source = open_source(config.source, config.path_column)
        with LocalModel(
            config.model,
            device=config.device,
            batch_size=config.batch_size,
            load_timeout_s=config.load_timeout_s,
        ) as model:
            facts = {
                "source": str(source.place.resolve()),
                "model": model.hash,
                "top-k": config.top_k,
                "min-confidence": config.min_confidence,
            }
            rows.begin(facts, min(config.top_k, len(model.labels)))
            return _write_rows(config, model, source, rows)


def _write_rows(config: PredictConfig, model: LocalModel, source: Source, rows: RowFile) -> int:
    terminal = Terminal(Console(stderr=True))
    items = rows.skip_done(source.items)
    if rows.done_count:
        terminal.say(f"going on after {rows.done_count:,} rows of {config.out}")
    count = failed = 0
    started_s = time.monotonic()
    with terminal.counting_on("predicting") as advance:
        for answered in answer_all([model], items):
            rows.write(to_rows(answered, config.top_k, config.min_confidence))
            advance(len(answered.items))
            count += len(answered.items)
            failed += sum(map(bool, answered.errors))
    took_s = time.monotonic() - started_s
    rows.finish()
    print_left_out(source)
    print(
        f"{config.out}: {rows.done_count + count:,} rows, {count / took_s:,.0f} images/s, "
        f"{model.name} {model.version}, sha256 {model.hash[:12]}"
    )
    if failed:
        print(
            f"foldserve predict: {failed:,} of {count:,} images failed; their rows say why", file=sys.stderr
        )
    return 1 if failed else 0


def to_rows(answered: Answered, top_k: int, min_confidence: float) -> Iterator[dict[str, Any]]:
    """Yield a row per item: path, label, probability, and ``top_k`` labels if above 1; or the error."""
    predictions = answered.predictions[0]
    best = predictions.ranked(top_k)
    ranked, probabilities = (
        best.tolist(),
        np.take_along_axis(predictions.probabilities, best, axis=1).tolist(),
    )
    unknown = is_unknown(predictions.confidences(), min_confidence).tolist()
    for item, error, place in zip(answered.items, answered.errors, answered.rows, strict=True):
        name = shown_name(item)
        if error:
            yield {"path": name, "error": f"{item.where}: {error}" if item.where else error}
            continue
        labels = [
            {"label": predictions.names[index], "probability": probability}
            for index, probability in zip(ranked[place], probabilities[place], strict=True)
        ]
        row = {"path": name, **labels[0]}
        if unknown[place]:
            row["label"] = UNKNOWN
        if top_k > 1:
            row["labels"] = labels
        yield row
