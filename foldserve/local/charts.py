"""Draws the pictures of a report as SVG: confusion and reliability.

SVG needs no drawing library, stays sharp, and leaves the fonts for labels in any script to the reader.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

from foldserve.artifact.calibration import BIN_COUNT
from foldserve.local.answers import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.artifact.calibration import ReliabilityBins
    from foldserve.local.measures import Measures

# Classes in the confusion picture; of more, those with the most mistakes.
MOST_CLASSES = 40
_LABEL_CHARACTERS = 24
# Pixels. Few classes get larger cells, and labels the room that the longest of them takes.
_SMALLEST_CELL, _LARGEST_CELL, _MATRIX = 26, 56, 420
_CHARACTER, _PADDING = 7.0, 16
_HEAD = 30


def confusion_svg(measures: Measures, labels: Sequence[str]) -> str:
    """Return the confusion matrix: a row per label, a column per answer, shaded by the row's share.

    If some answers are "unknown", the last column has them.
    """
    shown = _most_confused(measures, len(labels))
    answers = [*shown, measures.unknown] if measures.unknown_count else shown
    names = [*labels, UNKNOWN]
    rows: dict[int, int] = dict.fromkeys(shown, 0)
    for (true, _), count in measures.confusion.items():
        if true in rows:
            rows[true] += count
    cell = min(_LARGEST_CELL, max(_SMALLEST_CELL, _MATRIX // len(shown)))
    width, height = len(answers) * cell, len(shown) * cell
    margin = _PADDING + max(_width(_short(names[index])) for index in answers)
    parts = [_open(margin + max(width, _MATRIX) + _PADDING, _HEAD + height + margin, "Confusion matrix")]
    parts.append(_text(margin, 16, "rows: labels, columns: predictions", anchor="start"))
    for row, true in enumerate(shown):
        top = _HEAD + row * cell
        parts.append(_text(margin - 8, top + cell * 0.5 + 4, _short(labels[true]), anchor="end"))
        for column, guess in enumerate(answers):
            count = measures.confusion[true, guess]
            share = count / rows[true] if rows[true] else 0.0
            left = margin + column * cell
            colour = "31,119,180" if true == guess else "214,39,40"
            title = escape(f"{labels[true]} predicted as {names[guess]}: {count:,} ({share:.1%})")
            parts.append(
                f'<rect x="{left:.0f}" y="{top}" width="{cell - 1}" height="{cell - 1}" '
                f'fill="rgba({colour},{max(share, 0.04):.3f})"><title>{title}</title></rect>'
            )
            if count and len(str(count)) * 5 < cell:
                ink, size = "white" if share > 0.55 else "black", 8 if cell < _LARGEST_CELL // 2 + 8 else 11
                middle = left + cell / 2
                parts.append(
                    _text(middle, top + cell / 2 + 3, str(count), anchor="middle", size=size, fill=ink)
                )
    for column, guess in enumerate(answers):
        end, below = margin + (column + 0.6) * cell, _HEAD + height + 10
        parts.append(
            f'<g transform="translate({end:.0f},{below}) rotate(-60)">'
            f"{_text(0, 0, _short(names[guess]), anchor='end')}</g>"
        )
    return "".join([*parts, "</svg>"])


def reliability_svg(bins: ReliabilityBins) -> str:
    """Return the reliability diagram: the share of right answers by the highest probability."""
    side, left, top = 300, 60, 20
    width: float = side / BIN_COUNT
    total = max(1, int(bins.counts.sum()))
    parts = [_open(left + side + 20, top + side + 60, "Reliability diagram")]
    parts.append(f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#888"/>')
    for place in range(BIN_COUNT):
        count = int(bins.counts[place])
        if not count:
            continue
        accuracy, mean = bins.right[place] / count, bins.confidence_sums[place] / count
        height = side * accuracy
        title = escape(
            f"{count:,} images ({count / total:.1%}): probability {mean:.1%}, right {accuracy:.1%}"
        )
        parts.append(
            f'<rect x="{left + place * width:.1f}" y="{top + side - height:.1f}" width="{width - 1:.1f}" '
            f'height="{height:.1f}" fill="#1f77b4" fill-opacity="{0.25 + 0.75 * (count / total) ** 0.5:.2f}">'
            f"<title>{title}</title></rect>"
        )
        parts.append(
            f'<circle cx="{left + side * mean:.1f}" cy="{top + side - height:.1f}" r="3" fill="#d62728"/>'
        )
    parts.append(
        f'<line x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}" stroke="#444" '
        'stroke-dasharray="4"/>'
    )
    for share in (0.0, 0.5, 1.0):
        parts.append(_text(left + side * share, top + side + 16, f"{share:g}", anchor="middle"))
        parts.append(_text(left - 8, top + side * (1 - share) + 4, f"{share:g}", anchor="end"))
    parts.append(_text(left + side / 2, top + side + 36, "probability of the answer", anchor="middle"))
    parts.append(
        f'<g transform="translate(16,{top + side / 2}) rotate(-90)">'
        f"{_text(0, 0, 'share of right answers', anchor='middle')}</g>"
    )
    return "".join([*parts, "</svg>"])


def _most_confused(measures: Measures, class_count: int) -> list[int]:
    """Return the classes to show, in the model's order."""
    if class_count <= MOST_CLASSES:
        return list(range(class_count))
    mistakes = dict.fromkeys(range(class_count), 0)
    for (true, guess), count in measures.confusion.items():
        if true != guess:
            mistakes[true] += count
            if guess != measures.unknown:
                mistakes[guess] += count
    return sorted(sorted(mistakes, key=lambda index: -mistakes[index])[:MOST_CLASSES])


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'font-family="sans-serif" font-size="11"><title>{title}</title>'
        f'<rect width="100%" height="100%" fill="white"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str, size: int = 11, fill: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">'
        f"{escape(text)}</text>"
    )


def _width(text: str) -> float:
    """Return about how many pixels wide ``text`` is; Chinese, Japanese and Korean characters count twice."""
    return _CHARACTER * sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…"
