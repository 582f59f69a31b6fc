"""Tables of images: each wrong row is named by file and line."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foldserve import LocalModel, cli
from foldserve.errors import ImageError
from foldserve.local.label_names import LabelIndex
from foldserve.local.sources import open_labelled, open_source
from foldserve.tables.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.tables.items import Item

LABELS = ("cat", "dog", "Straße")
needs_pyarrow = pytest.mark.skipif(
    find_spec("pyarrow") is None, reason="needs pyarrow: pip install 'foldserve[parquet]'"
)


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def labelled(path: Path, **columns: str) -> list[Item]:
    return list(open_labelled(path, LABELS, **columns).items)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_gives_paths_beside_it_and_labels(tmp_path: Path, separator: str) -> None:
    rows = [["note", "file_name", "label"], ["x", "a b.png", " dog"], ["", "sub/c.png", "cat"]]
    path = table(tmp_path, "\ufeff" + "\n".join(separator.join(row) for row in rows) + "\n\n")
    items = labelled(path)
    assert [(item.content, item.label, item.error) for item in items] == [
        (tmp_path / "a b.png", "dog", ""),
        (tmp_path / "sub" / "c.png", "cat", ""),
    ]
    assert [item.where for item in items] == ["t.csv, line 2", "t.csv, line 3"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = table(tmp_path, "path,where,label,what\na,b.png,cat,dog\n")
    (item,) = labelled(path, path_column="where", label_column="what")
    assert (item.name, item.label) == ("b.png", "dog")
    with pytest.raises(DataError, match="has no column 'wat'; it has 'path', 'where', 'label', 'what'"):
        labelled(path, label_column="wat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "path,label,label\na,b,c\n", "has the column 'label' more than once", id="doubled column"
        ),
        pytest.param("path,note\na,b\n", "has no column of labels: it has 'path', 'note'", id="no labels"),
        pytest.param("x,label\na,b\n", "has no column of images", id="no paths"),
        pytest.param("path,label\n", "holds no images", id="no rows"),
        pytest.param("", r"t\.csv is empty", id="empty"),
        pytest.param("\n , \n\n", r"t\.csv is empty", id="blank lines"),
        pytest.param(
            "a/b.png,cat\nc.png,dog\n",
            "it has 'a/b.png', 'cat'; the header is missing: put a line such as image,label above the rows",
            id="no header",
        ),
        pytest.param("b.PNG,cat,cat\n", "more than once; the header is missing", id="doubled and no header"),
    ],
)
def test_useless_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labelled(table(tmp_path, text))


def test_blank_lines_above_the_header_are_skipped(tmp_path: Path) -> None:
    (item,) = labelled(table(tmp_path, "\n;;\n \npath;label\na.png;cat\n"))
    assert (item.name, item.label, item.where) == ("a.png", "cat", "t.csv, line 5")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        return write_parquet(path, rows)
    return table(path.parent, "".join(json.dumps(row) + "\n" for row in rows), path.name)


every_kind = pytest.mark.parametrize("suffix", [".jsonl", pytest.param(".parquet", marks=needs_pyarrow)])


@every_kind
def test_files_are_found_by_windows_paths_and_never_by_urls(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").touch()
    (tmp_path / "odd\\name.png").touch()
    names = ["sub\\a.png", "odd\\name.png", "sub\\none.png", "https://example.org/a.png"]
    items = labelled(write_rows(tmp_path / f"t{suffix}", [{"path": name, "label": "cat"} for name in names]))
    assert [item.name for item in items] == names
    assert [item.content for item in items[:3]] == [
        tmp_path / "sub" / "a.png",
        tmp_path / "odd\\name.png",
        tmp_path / "sub\\none.png",
    ]
    assert [item.error for item in items] == [
        "",
        "",
        "",
        "is a URL, and only files are read: download it first",
    ]


@every_kind
def test_labels_of_other_types_are_taken_for_what_they_mean(tmp_path: Path, suffix: str) -> None:
    def labels(*values: object) -> list[object]:
        rows = [{"path": "a.png", "label": value} for value in values]
        return [item.label or item.error for item in labelled(write_rows(tmp_path / f"t{suffix}", rows))]

    assert labels(3.0, 2.5) == [3, "has a label that is neither text nor a whole number: '2.5'"]
    assert labels(True, False) == ["true", "false"]


def test_files_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff.png,cat\n")
    with pytest.raises(DataError, match="cannot be read as CSV in UTF-8"):
        labelled(tmp_path / "t.csv")


def test_wrong_rows_are_named_by_line(tmp_path: Path) -> None:
    items = labelled(table(tmp_path, 'path,label\n"two\nlines.png",cat\na.png\n,dog\nnone.png,dog\n'))
    assert [(item.where, item.error) for item in items] == [
        ("t.csv, line 2", ""),
        ("t.csv, line 4", "has 1 fields, not 2"),
        ("t.csv, line 5", "names no image file"),
        ("t.csv, line 6", ""),
    ]
    with pytest.raises(ImageError, match="the file does not exist"):
        items[3].read()


def test_json_lines_give_the_same(tmp_path: Path) -> None:
    lines = [
        json.dumps({"path": "a.png", "label": "dog"}),
        "",
        "{broken",
        '{"path": "a", "path": "b", "label": "dog"}',
        json.dumps({"path": "b.png", "label": 1}),
        json.dumps({"path": "c.png", "label": [1]}),
        "[1]",
        "[]",
        "{}",
    ]
    items = labelled(table(tmp_path, "\n".join(lines), "t.jsonl"))
    assert [(item.where, item.label) for item in items if not item.error] == [
        ("t.jsonl, line 1", "dog"),
        ("t.jsonl, line 5", 1),
    ]
    errors = {item.where[-1]: item.error for item in items if item.error}
    assert errors.keys() == {"3", "4", "6", "7", "8", "9"}
    assert "is not JSON" in errors["3"]
    assert errors["4"] == "has the key 'path' more than once"
    assert "neither text nor a whole number" in errors["6"]
    assert errors["7"] == errors["8"] == "is not a JSON object"
    assert errors["9"] == "names no image file"


def test_long_lines_are_read_in_bounded_memory_and_time(tmp_path: Path) -> None:
    many = "{" + ", ".join(f'"key{number}": 0' for number in range(60_000)) + "}"
    good = json.dumps({"path": "a.png", "label": "dog"})
    lines = [good, many, json.dumps({"path": "x" * 3_000_000, "label": "dog"}), good]
    items = labelled(table(tmp_path, "\n".join(lines), "t.jsonl"))
    assert [(item.where, item.error) for item in items] == [
        ("t.jsonl, line 1", ""),
        ("t.jsonl, line 2", "names no image file"),
        ("t.jsonl, line 3", "is longer than 1,048,576 characters"),
        ("t.jsonl, line 4", ""),
    ]
    for row in (",a" * 600_000, ',"\na"' * 300_000):
        with pytest.raises(DataError, match=r"t\.csv has a row that is longer than 1,048,576 characters"):
            labelled(table(tmp_path, f"path,label\na.png,dog\nb.png{row}\n"))


def test_labels_are_found_by_name_then_by_number() -> None:
    index = LabelIndex(LABELS)
    assert [index.find(label) for label in ("dog", "Straße", 2, "1")] == [1, 2, 2, 1]
    assert LabelIndex(("e\u0301", "b")).find("\u00e9") == 0  # the same to a reader
    assert LabelIndex(("7", "1")).find("1") == 1  # names that are numbers win
    assert [LabelIndex(("7", "1")).find(label) for label in ("1.0", "7.", "0.0")] == [1, 0, 0]
    assert [LabelIndex(("2.0", "1.0", "1.5")).find(label) for label in ("1.0", 1, "2", "1.5")] == [1, 1, 0, 2]
    assert LabelIndex(LABELS, ("dog", "cat")).find(0) == 1  # the table's own names of its numbers
    for label, message in ((3, "'3', which the model"), ("dgo", "did you mean 'dog'"), (None, "no label")):
        with pytest.raises(ImageError, match=message):
            index.find(label)
    with pytest.raises(ImageError, match="the table names 2 labels"):
        LabelIndex(LABELS, ("dog", "cat")).find(5)


def test_predict_reads_a_csv(model: Path, pictures: Path, tmp_path: Path) -> None:
    paths = [path for path in sorted(pictures.rglob("*.png")) if path.is_file()][:5]
    lines = [f"{path}" for path in paths]
    path = table(tmp_path, "path\n" + "\n".join([*lines[:2], "none.png", *lines[2:]]) + "\n")
    assert cli.main(["predict", str(model), str(path), "--out", str(tmp_path / "o.jsonl")]) == 1
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert rows[2] == {"path": "none.png", "error": "t.csv, line 4: the file does not exist"}
    assert [row["label"] for row in rows if "label" in row] == LocalModel(model).predict(paths).labels()


def test_parquet_without_pyarrow_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "foldserve.tables.parquet_table", raising=False)
    (tmp_path / "t.parquet").touch()
    assert (
        cli.main(["predict", str(model), str(tmp_path / "t.parquet"), "--out", str(tmp_path / "o.csv")]) == 1
    )
    assert "needs packages that are not installed: pyarrow; install them with" in capsys.readouterr().err
    assert cli.main(["predict", str(model), str(tmp_path), "--out", str(tmp_path / "o.parquet")]) == 1
    assert "pyarrow; install them with" in capsys.readouterr().err


def write_parquet(path: Path, rows: list[dict[str, Any]], features: dict[str, Any] | None = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pa.Table.from_pylist(rows)
    if features is not None:
        facts = json.dumps({"info": {"features": features}})
        content = content.replace_schema_metadata({"huggingface": facts})
    pq.write_table(content, path)
    return path


@needs_pyarrow
def test_hugging_faces_layout_is_read(model: Path, pictures: Path, tmp_path: Path) -> None:
    """The same figures as from the folder, with labels numbered in another order."""
    names = LocalModel(model).labels[::-1]
    files = sorted(path for path in pictures.rglob("*.*") if path.is_file())
    rows = [
        {"image": {"bytes": file.read_bytes(), "path": file.name}, "label": names.index(file.parent.name)}
        for file in files
    ]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    (tmp_path / "data").mkdir()
    for shard in range(2):
        write_parquet(tmp_path / "data" / f"test-{shard}.parquet", rows[shard::2], features)
    found = []
    for name, data in (("folder", pictures), ("parquet", tmp_path / "data")):
        words = ["evaluate", str(model), "--data", str(data), "--out", str(tmp_path / name)]
        assert cli.main(words) == 0
        found.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert found[0]["classes"] == found[1]["classes"]


SPLITS = ("train", "Test", "", "train", "val", "test")


def write_splits(folder: Path, suffix: str, splits: Sequence[str] = SPLITS) -> Path:
    """Write a table of pictures 0.png, 1.png, ... of these splits; every second one is a cat, others dogs."""
    rows = [
        {"path": f"{number}.png", "label": LABELS[number % 2], "split": split}
        for number, split in enumerate(splits)
    ]
    path = folder / f"t{suffix}"
    if suffix == ".parquet":
        return write_parquet(path, rows)
    if suffix == ".jsonl":
        return table(folder, "".join(json.dumps(row) + "\n" for row in rows), path.name)
    lines = ["path,label,split", *(",".join(row.values()) for row in rows)]
    return table(folder, "\n".join(lines) + "\n", path.name)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", pytest.param(".parquet", marks=needs_pyarrow)])
@pytest.mark.parametrize(
    ("splits", "asked", "chosen", "said"),
    [
        (SPLITS, None, "15", "Test 2 (left out: train 2, none 1, val 1)"),
        (SPLITS, "testing", "15", "Test 2 (left out: train 2, none 1, val 1)"),
        (SPLITS, "TRAIN", "03", "train 2 (left out: Test 2, none 1, val 1)"),
        (SPLITS, "all", "012345", "all"),
        (("train", "dev", "train"), None, "1", "dev 1 (left out: train 2)"),
        (("train", "holdout", "train"), None, "012", "all, as none is test or val: train 2, holdout 1"),
        (("train", "holdout", "train"), "Holdout", "1", "holdout 1 (left out: train 2)"),
        (("", "", ""), None, "012", ""),
    ],
)
def test_the_test_rows_of_a_table_are_judged_unless_others_are_asked_for(
    tmp_path: Path, suffix: str, *, splits: Sequence[str], asked: str | None, chosen: str, said: str
) -> None:
    source = open_labelled(write_splits(tmp_path, suffix, splits), LABELS, split=asked)
    assert [item.name for item in source.items] == [f"{number}.png" for number in chosen]
    assert source.split == said


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", pytest.param(".parquet", marks=needs_pyarrow)])
def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, suffix: str) -> None:
    path = write_splits(tmp_path, suffix)
    said = "no split 'tset': it has train 2, Test 2, none 1 and 1 more; give one of them, or all"
    with pytest.raises(DataError, match=said):
        open_labelled(path, LABELS, split="tset")
    path = write_splits(tmp_path, suffix, ("", ""))
    with pytest.raises(DataError, match="no split 'test': it has no splits; leave out --split"):
        open_labelled(path, LABELS, split="test")


def test_columns_of_other_things_called_split_are_said(tmp_path: Path) -> None:
    path = write_splits(tmp_path, ".csv", [f"{number}%" for number in range(1001)])
    with pytest.raises(
        DataError, match=r"more than 1,000 different splits in its column split; .* --split all"
    ):
        open_labelled(path, LABELS)
    assert len(list(open_labelled(path, LABELS, split="all").items)) == 1001


def test_wrong_rows_of_other_splits_are_no_mistakes_and_those_of_unknown_ones_are(tmp_path: Path) -> None:
    text = "path,label,split\na.png,cat,test\n,cat,train\n,cat,test\nb.png\nc.png,cat,train\n"
    items = labelled(table(tmp_path, text))
    assert [(item.where, item.error) for item in items] == [
        ("t.csv, line 2", ""),
        ("t.csv, line 4", "names no image file"),
        ("t.csv, line 5", "has 1 fields, not 3"),
    ]


@needs_pyarrow
def test_of_parquet_files_named_by_their_splits_those_for_the_test_are_judged(tmp_path: Path) -> None:
    for name, count in (("train-0", 3), ("train-1", 2), ("test-0", 2), ("validation-0", 1)):
        write_parquet(
            tmp_path / f"{name}-of-2.parquet",
            [{"image": {"bytes": b"x", "path": f"{name}/{n}"}, "label": "cat"} for n in range(count)],
        )
    source = open_labelled(tmp_path, LABELS)
    assert [item.name for item in source.items] == ["test-0/0", "test-0/1"]
    assert source.split == "test 2 (left out: training 5, validation 1)"
    assert len(list(open_labelled(tmp_path, LABELS, split="train").items)) == 5
    assert len(list(open_labelled(tmp_path, LABELS, split="all").items)) == 8
    assert len(list(open_source(tmp_path).items)) == 8, "predict takes all"


def write_folders(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name / "cat").mkdir(parents=True)
        (folder / name / "cat" / "a.png").touch()
    return folder


@pytest.mark.parametrize(
    ("folders", "asked", "chosen"),
    [
        (("train", "val", "test"), None, ["test"]),
        (("Train", "Valid"), None, ["Valid"]),
        (("train", "val", "test"), "train", ["train"]),
        (("train", "val", "test"), "all", ["train", "val", "test"]),
        (("seg_train", "seg_test"), None, ["seg_test"]),
        (("train",), None, ["train"]),
    ],
)
def test_the_split_of_a_folder_is_chosen_alike(
    tmp_path: Path, folders: Sequence[str], asked: str | None, chosen: list[str]
) -> None:
    source = open_labelled(write_folders(tmp_path, *folders), LABELS, split=asked)
    items = list(source.items)
    assert [
        Path(item.content).parent.parent.name for item in items if not isinstance(item.content, bytes)
    ] == chosen
    assert {item.label for item in items} == {"cat"}
    assert source.split
    assert len({item.name for item in items}) == len(chosen)


def write_text_tables(folder: Path, *names: str) -> Path:
    """Write tables of one cat each, whose picture is named as the table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"path,label\n{name}.png,cat\n")
    return folder


def test_a_folder_with_tables_is_read_as_training_does(tmp_path: Path) -> None:
    folder = write_text_tables(tmp_path / "t", "a.csv")
    (folder / "images").mkdir()
    (folder / "images" / "x.png").touch()
    assert [item.name for item in labelled(folder)] == ["a.csv.png"]
    assert [item.name for item in open_source(folder).items] == ["images/x.png"], "predict takes all images"
    (folder / "images" / "x.png").unlink()
    assert [item.name for item in open_source(folder).items] == ["a.csv.png"]
    (folder / "cat").mkdir()
    (folder / "cat" / "y.png").touch()
    assert [item.name for item in labelled(folder)] == ["cat/y.png"]


@pytest.mark.parametrize("given", ["folder", "list", "data"])
def test_of_several_tables_of_text_those_for_the_test_are_judged(tmp_path: Path, given: str) -> None:
    folder = write_text_tables(tmp_path / "t" / "data", "classes.csv", "test.csv", "train.csv")
    place = {
        "folder": folder,
        "list": Path(f"{folder}/train.csv,{folder}/test.csv"),
        "data": tmp_path / "t",
    }[given]
    source = open_labelled(place, LABELS)
    assert [item.name for item in source.items] == ["test.csv.png"]
    assert source.split.startswith("test (left out: ")
    assert source.place == place
    assert [item.name for item in open_labelled(place, LABELS, split="train").items] == ["train.csv.png"]
    names = [item.name for item in open_source(place).items]
    assert {"test.csv.png", "train.csv.png"} <= set(names), "predict takes all"


def test_tables_that_cannot_be_told_apart_or_are_missing_are_refused(tmp_path: Path) -> None:
    folder = write_text_tables(tmp_path / "t", "test.csv")
    with pytest.raises(DataError, match=r"^\S*/none\.csv does not exist; expected each of the tables"):
        labelled(Path(f"{folder}/test.csv,{folder}/none.csv"))
    (folder / "test.jsonl").write_text('{"path": "a.png", "label": "cat"}\n')
    with pytest.raises(DataError, match="/test is there as 2 tables of different kinds; give or keep one"):
        labelled(folder)


@needs_pyarrow
def test_the_folder_around_hugging_faces_files_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = [{"image": {"bytes": b"x", "path": split}, "label": "cat"}]
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows)
    (tmp_path / "README.md").touch()
    assert [item.name for item in labelled(tmp_path)] == ["test"]
    assert len(list(open_source(tmp_path).items)) == 2


@pytest.mark.parametrize(
    ("written", "asked", "chosen", "said"),
    [
        ("wrap/data/cat", None, "cat/a.png", ""),
        ("wrap/train/cat", None, "cat/a.png", "all, as none is test or val: train"),
        ("wrap/test_data/test/cat", None, "cat/a.png", "test"),
        ("seg_train/seg_train/cat seg_test/seg_test/cat", None, "cat/a.png", "test (left out: training)"),
        ("wrap/seg_train/cat", "train", "cat/a.png", "training"),
        ("wrap/train/inner/cat wrap/test/inner/cat", "train", "cat/a.png", "train (left out: test)"),
        ("cat/monday/morning", None, "cat/monday/morning/a.png", ""),
    ],
)
def test_folders_in_folders_are_unwrapped_as_in_training(
    tmp_path: Path, written: str, *, asked: str | None, chosen: str, said: str
) -> None:
    for place in written.split():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.png").touch()
    source = open_labelled(tmp_path, LABELS, split=asked)
    items = list(source.items)
    assert [(item.name.removeprefix("train/"), item.label, item.error) for item in items] == [
        (chosen, "cat", "")
    ]
    assert source.split.startswith(said)
    assert bool(source.split) == bool(said)


def test_links_in_folders_in_folders_are_followed(tmp_path: Path) -> None:
    store = write_folders(tmp_path / "store", "one")
    for split in ("seg_train", "seg_test"):
        (tmp_path / "root" / split / split).mkdir(parents=True)
        for label in ("cat", "dog"):
            (tmp_path / "root" / split / split / label).symlink_to(store / "one" / "cat")
    assert len(labelled(tmp_path / "root")) == 2
    assert len(list(open_source(tmp_path / "root").items)) == 4


def test_what_lies_beside_splits_is_left_out_and_said(tmp_path: Path) -> None:
    source = open_labelled(write_folders(tmp_path, "train", "test", "more"), LABELS)
    assert [item.name for item in source.items] == ["cat/a.png"]
    (tmp_path / "cover.png").touch()
    lines = open_labelled(tmp_path, LABELS).left_out.lines()
    assert lines == ["more (not the name of a split)", "1 images beside the splits"]


def test_links_to_classes_and_splits_are_followed_as_in_training(tmp_path: Path) -> None:
    store = write_folders(tmp_path / "store", "train", "test")
    (store / "test" / "dog").symlink_to(store / "test" / "cat")
    (store / "test" / "cat" / "round").symlink_to(store)
    linked = tmp_path / "linked"
    linked.mkdir()
    for split in ("train", "test"):
        (linked / split).symlink_to(store / split)
    expected = ["cat/a.png", "dog/a.png"]
    for folder in (linked, store):
        assert [item.name for item in open_labelled(folder, LABELS).items] == expected
        names = [item.name for item in open_source(folder).items]
        assert names == ["test/cat/a.png", "test/dog/a.png", "train/cat/a.png"]
    assert [item.name for item in open_labelled(store / "test", LABELS).items] == expected
    assert [item.name for item in open_source(store / "test").items] == expected


def test_folders_without_the_split_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no split 'val': it has train, test; give one of them, or all"):
        open_labelled(write_folders(tmp_path / "a", "train", "test"), LABELS, split="val")
    classes = write_folders(tmp_path / "b", "cat", "dog")
    with pytest.raises(DataError, match="has no split 'test': it has no splits; leave out --split"):
        open_labelled(classes, LABELS, split="test")
    assert open_labelled(classes, LABELS, split="all").split == ""
    with pytest.raises(DataError, match="has test_a and test_b, both for test by their names"):
        open_labelled(write_folders(tmp_path / "c", "test_a", "test_b"), LABELS)


def test_evaluate_says_which_split_it_judged(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(path for path in pictures.rglob("*.png") if path.is_file())
    lines = [f"{file},{file.parent.name},{'test' if n % 3 else 'train'}" for n, file in enumerate(files)]
    path = table(tmp_path, "path,label,split\n" + "\n".join(lines) + "\n")
    tests = sum(bool(n % 3) for n in range(len(files)))
    for words, count, said in (
        ([], tests, f"test {tests} (left out: train {len(files) - tests})"),
        (["--split", "all"], len(files), "all"),
    ):
        out = tmp_path / said[:3]
        assert cli.main(["evaluate", str(model), "--data", str(path), "--out", str(out), *words]) == 0
        assert f"split       {said}\n" in capsys.readouterr().out
        facts = json.loads((out / "metrics.json").read_text())
        assert (facts["image_count"], facts["split"]) == (count, said)


@needs_pyarrow
def test_an_image_whose_path_is_a_number_has_no_name(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": b"1", "path": 7}, "label": 0},
        {"image": {"bytes": b"", "path": 7}, "label": 0},
    ]
    items = labelled(write_parquet(tmp_path / "t.parquet", rows))
    assert [(item.name, item.error) for item in items] == [
        ("t.parquet, row 0", ""),
        ("t.parquet, row 1", "has no image"),
    ]


@needs_pyarrow
def test_parquet_without_images_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"x": 1, "label": 0}])
    with pytest.raises(DataError, match="has no images: expected a column of bytes"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(path)


@needs_pyarrow
def test_rows_are_written_as_parquet(model: Path, pictures: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    for suffix in ("jsonl", "parquet"):
        words = ["predict", str(model), str(pictures), "--out", str(tmp_path / f"o.{suffix}"), "--top-k", "2"]
        assert cli.main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    written = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [row | {"error": None} for row in rows] == written


@needs_pyarrow
def test_wrong_rows_of_parquet_are_named(tmp_path: Path) -> None:
    rows = [{"img": b"x", "label": "cat"}, {"img": None, "label": "cat"}]
    items = labelled(write_parquet(tmp_path / "t.parquet", rows))
    assert [(item.where, item.error) for item in items] == [
        ("t.parquet, row 0", ""),
        ("t.parquet, row 1", "has no image"),
    ]
