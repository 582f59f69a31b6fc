"""Which version answers by default: read, written atomically, and refused if somebody else wrote nonsense."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from foldserve.artifact.promotion import (
    PROMOTED_FILE,
    Promotion,
    by_preference,
    default_version,
    read_promotions,
    write_promotions,
)
from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

SHA = "0" * 64


def promotions(*versions: int) -> list[Promotion]:
    return [Promotion.now(version, SHA) for version in versions]


def test_promotions_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_promotions(tmp_path) == ()
    written = promotions(1, 3, 2)
    write_promotions(tmp_path, written)
    assert list(read_promotions(tmp_path, tmp_path)) == written
    assert [path.name for path in tmp_path.iterdir()] == [PROMOTED_FILE], "nothing is left behind"
    write_promotions(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_of_very_many_promotions_are_dropped(tmp_path: Path) -> None:
    write_promotions(tmp_path, promotions(*range(1, 251)))
    assert [each.version for each in read_promotions(tmp_path)] == list(range(151, 251))


@pytest.mark.parametrize(
    ("versions", "promoted", "expected"),
    [
        ((1, 2, 3), (), 3),
        ((1, 2, 3), (1,), 1),
        ((1, 2, 3), (3, 1, 2), 2),
        ((1, 3), (1, 2), 1),  # the promoted one is gone: the one promoted before
        ((3, 4), (1, 2), 4),
        ((), (1,), None),
    ],
)
def test_the_default_is_the_last_promoted_that_is_there(
    versions: tuple[int, ...], promoted: tuple[int, ...], expected: int | None
) -> None:
    assert default_version(versions, promotions(*promoted)) == expected
    assert by_preference(promotions(1, 2, 1)) == (1, 2)


GOOD: dict[str, Any] = {"version": 1, "sha256": SHA, "promoted_at": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="list"),
        pytest.param('{"schema_version": 1, "promotions": []}', id="no promotion"),
        pytest.param(json.dumps({"schema_version": 2, "promotions": [GOOD]}), id="schema"),
        pytest.param(json.dumps({"schema_version": 1, "promotions": [GOOD | {"version": 0}]}), id="zero"),
        pytest.param(json.dumps({"schema_version": 1, "promotions": [GOOD | {"version": "1"}]}), id="text"),
        pytest.param(json.dumps({"schema_version": 1, "promotions": [GOOD | {"sha256": "x"}]}), id="hash"),
        pytest.param(json.dumps({"schema_version": 1, "promotions": [GOOD | {"more": 1}]}), id="more"),
        pytest.param(json.dumps({"schema_version": 1, "promotions": [GOOD] * 101}), id="too many"),
        pytest.param(" " * 70_000, id="large"),
        pytest.param("[" * 50_000, id="deep"),
    ],
)
def test_a_malformed_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / PROMOTED_FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"promoted\.json") as refused:
        read_promotions(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_form_that_is_refused_above_is_otherwise_accepted(tmp_path: Path) -> None:
    (tmp_path / PROMOTED_FILE).write_text(json.dumps({"schema_version": 1, "promotions": [GOOD] * 100}))
    assert len(read_promotions(tmp_path)) == 100


def test_a_link_out_of_the_repository_is_not_followed(tmp_path: Path) -> None:
    outside, model = tmp_path / "outside", tmp_path / "models" / "tiny"
    outside.mkdir()
    model.mkdir(parents=True)
    write_promotions(outside, promotions(1))
    (model / PROMOTED_FILE).symlink_to(outside / PROMOTED_FILE)
    with pytest.raises(ArtifactError, match="leads out of the repository"):
        read_promotions(model, tmp_path / "models")
    assert len(read_promotions(model)) == 1, "a twin: where links are trusted it is read"
