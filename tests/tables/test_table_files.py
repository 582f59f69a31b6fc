"""The tables that a path names or holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from foldserve.tables.table_files import find_tables


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("a.csv", "a.csv"),
        ("b.parquet a.CSV .c.csv notes.txt", "a.CSV b.parquet"),
        ("data/a.parquet README.md", "data/a.parquet"),
        ("data/a.parquet x.png", ""),
        ("data/a.parquet more/x.txt", ""),
        ("a.csv images/x.png", "a.csv"),
        ("a.csv train/x.png test/x.png", "a.csv"),
        ("a.csv cat/x.png dog/x.png", ""),
        ("a.csv train/cat/x.png", ""),
        ("cat/x.png", ""),
    ],
)
def test_a_folder_holds_tables_unless_it_holds_classes(tmp_path: Path, files: str, expected: str) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = find_tables(tmp_path)
    assert found == [tmp_path / name for name in expected.split()]


def test_commas_stand_between_tables_or_in_a_name(tmp_path: Path) -> None:
    for name in ("a.csv", "b.jsonl", "c,d.csv"):
        (tmp_path / name).touch()
    for given, expected in (
        (f"{tmp_path}/a.csv,{tmp_path}/b.jsonl", ["a.csv", "b.jsonl"]),
        (f"{tmp_path}/c,d.csv", ["c,d.csv"]),
        (f"{tmp_path}/a.csv,{tmp_path}/none.csv", []),
    ):
        found = find_tables(Path(given))
        assert found == [tmp_path / name for name in expected]
