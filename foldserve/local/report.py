"""Writes the files of an evaluation: report.html, metrics.json and predictions.csv.

report.html is one file without references to others, so it can be mailed.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
from html import escape
from typing import IO, TYPE_CHECKING, Any, Self

from PIL import Image

from foldserve.local.charts import MOST_CLASSES, confusion_svg, reliability_svg
from foldserve.local.errors import OutputError
from foldserve.replacing import write_replacing
from foldserve.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.local.measures import ClassMeasure, Measures
    from foldserve.local.mistakes import Mistake

REPORT_FILE, METRICS_FILE, PREDICTIONS_FILE = "report.html", "metrics.json", "predictions.csv"
_PICTURE_SIDE = 96

_STYLE = (
    "body{font-family:sans-serif;margin:2em auto;padding:0 1em;max-width:1100px;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;text-align:left;border-bottom:1px "
    "solid #ddd}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}figure{display:inline-block;"
    "width:150px;vertical-align:top;margin:.5em;font-size:12px;overflow-wrap:anywhere}img{image-rendering:pixelated;"
    "width:96px}code{overflow-wrap:anywhere}"
)


class EvaluationFolder:
    """The folder of one evaluation. Files are written beside their names and renamed at the end."""

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        """Begin predictions.csv.

        Raises:
            OutputError: an evaluation is there already, or the folder cannot be written.
        """
        self._folder = folder
        names = (REPORT_FILE, METRICS_FILE, PREDICTIONS_FILE)
        there = [name for name in names if os.path.lexists(folder / name)]
        if there and not overwrite:
            raise OutputError(
                f"{folder / there[0]} exists already; replace it with --overwrite, or give another --out"
            )
        self._beside = folder / f".{PREDICTIONS_FILE}.writing"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream: IO[str] = self._beside.open(
                "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
        self._rows = csv.writer(self._stream)
        self._rows.writerow(["path", "label", "prediction", "probability", "right"])

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop predictions that are not finished."""
        self._stream.close()
        self._beside.unlink(missing_ok=True)

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows to predictions.csv: path, label, prediction, probability, whether it is right.

        Raises:
            OutputError: the disk is full.
        """
        try:
            self._rows.writerows(rows)
        except OSError as error:
            raise self._cannot(error) from error

    def finish(self, metrics: Mapping[str, Any], page: str) -> None:
        """Write the other files and give all their names.

        Raises:
            OutputError: the disk is full.
        """
        try:
            self._stream.close()
            for name, text in (
                (METRICS_FILE, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"),
                (REPORT_FILE, page),
            ):
                write_replacing(self._folder / name, text.encode(errors="backslashreplace"))
            self._beside.replace(self._folder / PREDICTIONS_FILE)
        except OSError as error:
            raise self._cannot(error) from error

    def _cannot(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._folder} cannot be written: {error.strerror or error}; no report was written"
        )


def make_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    measures: Measures,
    labels: Sequence[str],
    mistakes: Sequence[Mistake],
) -> str:
    """Return the report as one HTML page."""
    rows = "".join(f"<tr><th>{_shown(name)}</th><td>{_shown(value)}</td></tr>" for name, value in facts)
    cut = f" (the {MOST_CLASSES} classes with the most mistakes)" if len(labels) > MOST_CLASSES else ""
    return "".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_shown(title)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{_shown(title)}</h1><table>{rows}</table>",
            "<h2>Classes</h2><table><tr><th>label</th>",
            *(f'<th class="n">{name}</th>' for name in ("images", "precision", "recall", "F1")),
            "</tr>",
            *map(_class_row, measures.classes()),
            f"</table><h2>Confusion{cut}</h2>{confusion_svg(measures, labels)}",
            "<h2>Reliability</h2><p>Bars: share of right answers among the images of each range of "
            "probability, darker with more images; dots: the same at the mean of their probabilities. "
            "On the dashed line a probability means what it says; below it the model is too sure."
            f"</p>{reliability_svg(measures.reliability)}",
            "<h2>Worst mistakes</h2>" if mistakes else "<h2>No mistakes</h2>",
            *map(_figure, mistakes),
            "</body></html>\n",
        ]
    )


def percent(share: float) -> str:
    """Return a share as text; "-" for NaN."""
    return "-" if math.isnan(share) else f"{share:.2%}"


def _class_row(measure: ClassMeasure) -> str:
    numbers = (percent(measure.precision), percent(measure.recall), percent(measure.f1))
    cells = "".join(f'<td class="n">{text}</td>' for text in (f"{measure.image_count:,}", *numbers))
    return f"<tr><td>{_shown(measure.label)}</td>{cells}</tr>"


def _figure(mistake: Mistake) -> str:
    return (
        f'<figure><img alt="" src="data:image/png;base64,{_png(mistake.pixels)}"><figcaption>'
        f"<b>{_shown(mistake.label)}</b> taken for <b>{_shown(mistake.prediction)}</b>, "
        f"{mistake.probability:.1%}<br><code>{_shown(mistake.name)}</code></figcaption></figure>"
    )


def _png(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _shown(text: str) -> str:
    return escape(escape_controls(text))
