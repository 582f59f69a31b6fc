"""The pictures of an evaluation lie within their frame, whatever the classes are called."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from foldserve.local.answers import Predictions
from foldserve.local.charts import MOST_CLASSES, confusion_svg
from foldserve.local.measures import Measures
from tests.local.test_measures import SURE_A, SURE_B, SURE_C, measured

SVG = "{http://www.w3.org/2000/svg}"
# Of a letter, in font sizes: no more than most fonts without serifs take on average.
LETTER = 0.55


@pytest.mark.parametrize(
    "labels",
    [["a", "b", "c"], ["a label that is longer than shown", "b", "c"], ["猫" * 30, "<b>", "&"]],
    ids=["short", "long", "wide"],
)
def test_all_of_the_confusion_picture_is_within_its_frame(labels: list[str]) -> None:
    measures = measured([SURE_A, SURE_A, SURE_B, SURE_C], [0, 1, 1, 2])
    picture = ET.fromstring(confusion_svg(measures, labels))
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    cells = [rect.attrib for rect in picture.findall(f"{SVG}rect") if "x" in rect.attrib]
    assert len(cells) == 9
    for cell in cells:
        assert 0 <= float(cell["x"]) < float(cell["x"]) + float(cell["width"]) <= width
        assert 0 <= float(cell["y"]) < float(cell["y"]) + float(cell["height"]) <= height
    for text in picture.findall(f"{SVG}text"):
        long = length(text)
        before = {"start": 0.0, "middle": long / 2, "end": long}[text.attrib["text-anchor"]]
        assert float(text.attrib["x"]) - before >= 0
        assert float(text.attrib["x"]) - before + long <= width
    for group in picture.findall(f"{SVG}g"):  # the names below, which go down to the left
        match = re.match(r"translate\((\d+),([\d.]+)\) rotate\(-60\)", group.attrib["transform"])
        assert match
        long = length(group[0])
        assert float(match[1]) - long / 2 >= 0
        assert float(match[2]) + 0.87 * long <= height


def test_unknown_answers_have_the_last_column() -> None:
    measures = measured([SURE_A, SURE_A, SURE_B, SURE_C], [0, 1, 1, 2], [True, False, False, False])
    picture = ET.fromstring(confusion_svg(measures, ["a", "b", "c"]))
    cells = [rect for rect in picture.findall(f"{SVG}rect") if "x" in rect.attrib]
    assert len(cells) == 3 * 4
    assert cells[3].findtext(f"{SVG}title") == "a predicted as unknown: 1 (100.0%)"
    assert [group[0].text for group in picture.findall(f"{SVG}g")] == ["a", "b", "c", "unknown"]


def test_classes_that_are_often_unknown_are_among_the_most_confused() -> None:
    labels = [f"class {index}" for index in range(MOST_CLASSES + 1)]
    rows = np.full((1, len(labels)), 0.01)
    measures = Measures(labels)
    answers = Predictions(tuple(labels), np.log(rows), rows)
    measures.add(answers, np.array([MOST_CLASSES]), np.array([True]))
    assert f"class {MOST_CLASSES} predicted as unknown: 1 " in confusion_svg(measures, labels)


def length(text: ET.Element) -> float:
    wide = sum(ord(character) > 0x2E80 for character in text.text or "")
    return (LETTER * len(text.text or "") + (1 - LETTER) * wide) * float(text.attrib["font-size"])
