"""Finds installed fonts for labels in any script: matplotlib's own has no Chinese, Japanese or Korean."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import font_manager

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_OWN_FAMILY = "DejaVu Sans"  # comes with matplotlib
_PLAIN_WEIGHTS = (400, "normal", "regular")
_BOXES = "Last Resort"  # a font with a box for every character


def font_families(texts: Iterable[str]) -> tuple[list[str], str]:
    """Return the font families that draw ``texts``, and the characters that no installed font has.

    The first family is matplotlib's own. Each further one is tried, in the order of their names, only
    for characters that those before it lack.
    """
    families = [_OWN_FAMILY]
    missing = {character for text in texts for character in text if character.isprintable()}
    missing -= _characters(font_manager.findfont(_OWN_FAMILY))
    if missing:
        for name, file in _plain_fonts():
            found = missing & _characters(file)
            if found and name not in families:
                families.append(name)
                missing -= found
            if not missing:
                break
    return families, "".join(sorted(missing))


def missing_font_line(texts: Iterable[str]) -> str | None:
    """Return a warning if pictures show boxes for characters of ``texts``, because no font has them."""
    _, missing = font_families(texts)
    if not missing:
        return None
    shown = missing[:5] + ("..." if len(missing) > 5 else "")
    return (
        f"warning: the report's pictures show boxes for characters of the labels ({shown}), "
        "because no installed font has them; install one, such as Debian's fonts-noto (for Chinese, Japanese "
        "and Korean fonts-noto-cjk). predictions.csv has the labels in full"
    )


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Draw each character of ``texts`` in the context with a font that has it, or without a word as a box."""
    families, _ = font_families(texts)
    with mpl.rc_context({"font.family": families}), warnings.catch_warnings():
        # One for each character and text; `missing_font_line` says it once.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield


def _plain_fonts() -> list[tuple[str, str]]:
    """Return families and files of the fonts that text which is neither bold nor slanted is drawn with."""
    return sorted(
        (font.name, font.fname)
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in _PLAIN_WEIGHTS and not font.name.startswith(_BOXES)
    )


@cache
def _characters(file: str) -> frozenset[str]:
    with suppress(OSError, RuntimeError):  # a font that cannot be read draws nothing
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    return frozenset()
