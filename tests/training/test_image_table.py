"""Loading tables of images and labels: splits, classes, wrong rows, and the same pixels as from folders."""

from __future__ import annotations

import csv
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foldserve import cli
from foldserve.imaging import prepare_image
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import Dataset, load_dataset
from foldserve.training.datasets.registry import fingerprint_of
from foldserve.training.errors import DatasetError
from tests.support.image_folders import LABELS, write_classes
from tests.training.conftest import LineTerminal

needs_pyarrow = pytest.mark.skipif(
    find_spec("pyarrow") is None, reason="needs pyarrow: pip install 'foldserve[parquet]'"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(place: Path | str, **settings: Any) -> tuple[Dataset, list[str]]:
    terminal = LineTerminal()
    return load_dataset(str(place), terminal=terminal, **settings), terminal.lines


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return a row per picture below ``folder``, its path relative to the folder above."""
    files = sorted(folder.rglob("*.png"))
    return [{"path": str(file.relative_to(folder.parent)), "label": file.parent.name} for file in files]


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], names: tuple[str, ...] = ()) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pa.Table.from_pylist(rows)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        content = content.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(content, path, row_group_size=7)
    return path


def pixels_by_label(dataset: Dataset, *, test: bool) -> set[tuple[str, bytes]]:
    images = dataset.test_images if test else dataset.train_images
    labels = dataset.test_labels if test else dataset.train_labels
    return {
        (dataset.labels[label], image.numpy().tobytes())
        for image, label in zip(images, labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_gives_what_the_folder_gives(tmp_path: Path, suffix: str):
    folder = write_classes(tmp_path / "p", per_class=10)
    dataset, lines = load(write_table(tmp_path / f"birds{suffix}", rows_of(folder)))
    assert dataset.labels == LABELS
    assert dataset.train_labels.bincount().tolist() == [8] * 4
    assert dataset.test_labels.bincount().tolist() == [2] * 4
    expected = {
        (file.parent.name, prepare_image(file.read_bytes(), dataset.image).tobytes())
        for file in folder.rglob("*.png")
    }
    assert pixels_by_label(dataset, test=False) | pixels_by_label(dataset, test=True) == expected
    assert any("4 classes (east, north, south, west); 40 images, a fifth" in line for line in lines)
    again, _ = load(tmp_path / f"birds{suffix}")
    assert torch.equal(again.test_images, dataset.test_images)
    assert again.fingerprint == dataset.fingerprint == fingerprint_of(tmp_path / f"birds{suffix}")


def test_a_split_column_splits(tmp_path: Path):
    rows = rows_of(write_classes(tmp_path / "p", per_class=6))
    for index, row in enumerate(rows):
        row["split"] = ("train", "Train", "training", "train", "valid", "test")[index % 6]
    dataset, lines = load(write_table(tmp_path / "t.csv", rows))
    assert dataset.train_labels.bincount().tolist() == [4] * 4
    assert dataset.validation is not None
    assert dataset.validation.labels.bincount().tolist() == [1] * 4
    last = sorted((tmp_path / "p").glob("*/005.png"))
    for image, file in zip(dataset.test_images, last, strict=True):
        assert np.array_equal(image.numpy(), prepare_image(file.read_bytes(), dataset.image))
    assert any("16 images for training, 4 images for validation, 4 images for test" in one for one in lines)
    del rows[0]["split"]
    with pytest.raises(
        DatasetError, match=r"t\.jsonl, line 1: p/east/000\.png: has no split, and other rows"
    ):
        load(write_table(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize("given", ["folder", "files"])
def test_several_tables_are_the_splits_that_their_names_tell(tmp_path: Path, given: str):
    (tmp_path / "d").mkdir()
    rows = rows_of(write_classes(tmp_path / "images", per_class=5))
    for row in rows:
        row["path"] = f"../{row['path']}"
    for name, part in (("test", rows[4::5]), ("my_train", [row for row in rows if "004" not in row["path"]])):
        write_table(tmp_path / "d" / f"{name}.csv", part)
    write_table(tmp_path / "d" / "notes.csv", rows)
    names = ("test.csv", "my_train.csv")
    place = tmp_path / "d" if given == "folder" else ",".join(str(tmp_path / "d" / name) for name in names)
    dataset, lines = load(place)
    assert len(dataset.train_labels) == 16
    assert pixels_by_label(dataset, test=True) == {
        (file.parent.name, prepare_image(file.read_bytes(), dataset.image).tobytes())
        for file in (tmp_path / "images").glob("*/004.png")
    }
    left_out = "left out: notes.csv (not the name of a split)" in lines
    assert left_out == (given == "folder")


def test_tables_beside_folders_of_classes_leave_them_a_folder_of_images(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=5)
    write_table(folder / "train.csv", [{"path": "nowhere.png", "label": "x"}])
    dataset, _ = load(folder)
    assert dataset.labels == LABELS


def test_wrong_rows_are_named_by_line_counted_and_skipped_if_asked(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=8)
    rows = rows_of(folder)
    for row in rows:
        row["split"] = "test" if row["path"].endswith("000.png") else "train"
    rows[3]["path"] = "p/none.png"
    (folder / "north" / "004.png").write_bytes(b"not an image")
    rows[8]["label"] = "nroth"  # of the test: training never saw it
    rows[20]["label"] = ""
    rows[21]["split"] = "trial"
    table = write_table(tmp_path / "t.csv", rows)
    table.write_text(table.read_text() + "p/west/001.png\n")
    terminal = LineTerminal()
    with pytest.raises(DatasetError, match=r"6 of 33 images in .*t\.csv cannot be used \(.*--skip-broken"):
        load_dataset(str(table), terminal=terminal)
    broken = {line for line in terminal.lines if line.startswith("broken: ")}
    for expected in (
        "line 5: p/none.png: the file does not exist",
        "line 10: p/north/000.png: has the label 'nroth', which no training image has",
        "line 14: p/north/004.png: not an image",
        "line 22: p/south/004.png: has no label",
        "line 23: p/south/005.png: has the split 'trial'; expected train, val or test",
        "line 34: p/west/001.png: has 1 fields, not 3",
    ):
        assert any(line.startswith(f"broken: t.csv, {expected}") for line in broken), expected
    dataset, lines = load(table, skip_broken=True)
    assert len(dataset.train_labels) + len(dataset.test_labels) == 27
    assert any("6 of 33 images" in line and line.endswith("left out") for line in lines)
    expected = {
        (row["label"], prepare_image((tmp_path / row["path"]).read_bytes(), dataset.image).tobytes())
        for row in rows
        if row["split"] == "train" and row["label"] and Path(row["path"]).name not in ("none.png", "004.png")
    }
    assert expected <= pixels_by_label(dataset, test=False)  # each row kept its own label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("path,label,label\na,b,c\n", "has the column 'label' more than once", id="doubled"),
        pytest.param("path,note\na,b\n", "has no column of labels: it has 'path', 'note'", id="no labels"),
        pytest.param("path,label\n", "has no labelled images", id="no rows"),
        pytest.param(
            "path,label\np/east/000.png,a\np/east/001.png,a\n",
            "has only one class, 'a'; expected images of two classes or more",
            id="one class",
        ),
        pytest.param(
            "path,label\np/east/000.png,a\np/west/000.png,b\n",
            "has a single image per class, which leaves none for the test",
            id="one image a class",
        ),
        pytest.param(
            "path,label,split\np/east/000.png,a,test\np/west/000.png,b,test\n",
            "has no rows for training",
            id="no training",
        ),
        pytest.param("path,label\nx.png,a\ny.png,b\n", "2 of 2 images in", id="all files missing"),
    ],
)
def test_useless_tables_are_refused(tmp_path: Path, text: str, message: str):
    write_classes(tmp_path / "p", per_class=2)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load(tmp_path / "t.csv")


def test_several_tables_without_roles_are_refused(tmp_path: Path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,label\n")
    with pytest.raises(DatasetError, match="are several tables; give one of them, or name them by their"):
        load(tmp_path)
    (tmp_path / "a.csv").rename(tmp_path / "test.csv")
    (tmp_path / "b.csv").rename(tmp_path / "val.csv")
    with pytest.raises(DatasetError, match=r"no table for training is among test\.csv, val\.csv"):
        load(tmp_path)
    with pytest.raises(DatasetError, match=r"the file .*none\.csv does not exist"):
        load(tmp_path / "none.csv")
    (tmp_path / "train.csv").write_text("path,label\n")
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DatasetError, match="train is there as 2 tables of different kinds"):
        load(tmp_path)


def test_commas_stand_between_tables_or_in_a_name(tmp_path: Path):
    rows = rows_of(write_classes(tmp_path / "p", per_class=3))
    train = write_table(tmp_path / "train.csv", rows)
    assert load(write_table(tmp_path / "north,south.csv", rows))[0].labels == LABELS
    with pytest.raises(DatasetError, match=r"^\S*/none\.csv does not exist; expected each of the tables"):
        load(f"{train},{tmp_path / 'none.csv'}")


def test_labels_that_are_numbers_are_ordered_as_such(tmp_path: Path):
    rows = rows_of(write_classes(tmp_path / "p", per_class=3))
    for row in rows:
        row["label"] = {"east": 10, "north": 9, "south": 1, "west": 0}[row["label"]]
    for name in ("t.csv", "t.jsonl"):
        assert load(write_table(tmp_path / name, rows))[0].labels == ("0", "1", "9", "10")
    long = "9" * 5000  # more digits than an int is made of
    for row in rows:
        row["label"] = {10: long, 9: "009", 1: "01", 0: "1"}[row["label"]]
    assert load(write_table(tmp_path / "t.csv", rows))[0].labels == ("01", "1", "009", long)


def test_whole_numbers_with_a_point_are_whole_numbers_unless_others_are_not(tmp_path: Path):
    rows = rows_of(write_classes(tmp_path / "p", per_class=3))
    for row in rows:
        row["label"] = {"east": "0.0", "north": "1.0", "south": "2.0", "west": "10.0"}[row["label"]]
    assert load(write_table(tmp_path / "t.csv", rows))[0].labels == ("0", "1", "2", "10")
    rows = [row | {"label": row["label"].replace("10.0", "1.5")} for row in rows]
    assert load(write_table(tmp_path / "t.csv", rows))[0].labels == ("0.0", "1.0", "1.5", "2.0")


@needs_pyarrow
@pytest.mark.parametrize(("kind", "labels"), [(float, ("0", "1", "2", "3")), (bool, ("false", "true"))])
def test_labels_of_parquet_may_be_floats_and_truths(tmp_path: Path, kind: type, labels: tuple[str, ...]):
    rows = rows_of(write_classes(tmp_path / "p", per_class=3))
    rows = [row | {"label": kind(LABELS.index(row["label"]))} for row in rows]
    assert load(write_parquet(tmp_path / "t.parquet", rows))[0].labels == labels


def test_tables_written_on_windows_give_the_same_data_set(tmp_path: Path):
    folders = [write_classes(tmp_path / name, per_class=1, seed=seed) for seed, name in enumerate("pqrst")]
    rows = [row for folder in folders for row in rows_of(folder)]
    dataset, _ = load(write_table(tmp_path / "t.csv", rows), group_by="folder")
    rows = [row | {"path": row["path"].replace("/", "\\")} for row in rows]
    there, _ = load(write_table(tmp_path / "t.csv", rows), group_by="folder")
    assert there.fingerprint == dataset.fingerprint
    assert torch.equal(there.test_labels, dataset.test_labels)


def test_a_picture_with_different_labels_is_said(tmp_path: Path):
    rows = rows_of(write_classes(tmp_path / "p", per_class=5))
    table = write_table(tmp_path / "t.csv", [*rows, rows[0]])
    assert not any("different labels" in line for line in load(table)[1])
    table = write_table(tmp_path / "t.csv", [*rows, rows[0] | {"label": "west"}])
    assert (
        "the same picture with different labels: t.csv, line 2: p/east/000.png is 'east' and "
        "t.csv, line 22: p/east/000.png is 'west'"
    ) in load(table)[1]


@pytest.mark.parametrize("name", ["t.tsv", "t.json"])
def test_files_of_other_kinds_are_told_which_kinds_are_known(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    expected = r"is neither a folder of images nor a table .*\(\.csv, \.jsonl, \.ndjson, \.parquet\)"
    with pytest.raises(DatasetError, match=rf"{name} {expected}"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("dataset", "run_dir"),
    [
        ("data/birds.csv", "runs/birds"),
        ("data/train.csv,data/val.csv", "runs/train"),
        ("data/birds", "runs/birds"),
    ],
)
def test_a_run_is_named_after_its_table(dataset: str, run_dir: str):
    assert TrainConfig.model_validate({"dataset": dataset}).run_dir == Path(run_dir)


def test_columns_of_tables_are_named_and_kept_by_a_run(tmp_path: Path):
    rows = rows_of(write_classes(tmp_path / "p", per_class=12))
    rows = [{"path": "x", "where": row["path"], "label": "x", "what": row["label"]} for row in rows]
    table = write_table(tmp_path / "birds.csv", rows)
    words = ["train", "--arch", "lenet", "--dataset", str(table), "--epochs", "1", "--batch-size", "8"]
    columns = ["--path-column", "where", "--label-column", "what"]
    run = ["--run-dir", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]
    assert cli.main([*words, *run]) == 1
    assert cli.main([*words, *run, *columns]) == 0
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert best.labels == LABELS
    assert (best.path_column, best.label_column) == ("where", "what")
    again, _ = load(best.dataset, path_column=best.path_column, label_column=best.label_column)
    assert again.fingerprint == best.fingerprint
    with pytest.raises(DatasetError, match="--label-column is for tables of images"):
        load(tmp_path / "p", label_column="what")


def test_a_finished_run_is_told_when_its_table_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = rows_of(write_classes(tmp_path / "p", per_class=12))
    table = write_table(tmp_path / "t.csv", rows)
    words = ["train", "--arch", "lenet", "--dataset", str(table), "--epochs", "1", "--batch-size", "8"]
    words += ["--run-dir", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]
    assert cli.main(words) == 0
    assert cli.main(words) == 0
    assert "is finished" in capsys.readouterr().out
    rows[0]["label"], rows[-1]["label"] = rows[-1]["label"], rows[0]["label"]
    write_table(table, rows)
    assert cli.main(words) == 1
    assert "has a finished run on other images" in capsys.readouterr().err


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "foldserve.tables.parquet_table", raising=False)
    (tmp_path / "t.parquet").touch()
    words = ["train", "--dataset", str(tmp_path / "t.parquet"), "--run-dir", str(tmp_path / "run")]
    assert cli.main(words) == 1
    assert "pyarrow; install them with" in capsys.readouterr().err


@needs_pyarrow
@pytest.mark.parametrize("nested", [False, True])
def test_hugging_faces_layout_is_read(tmp_path: Path, nested: bool):
    """Shards, labels that are numbers, and a class that no image has."""
    files = sorted(write_classes(tmp_path / "p", per_class=10).rglob("*.png"))
    names = ("west", "unused", "east", "south", "north")
    rows = [
        {"image": {"bytes": file.read_bytes(), "path": file.name}, "label": names.index(file.parent.name)}
        for file in files
    ]
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for shard in range(2):
        part = [row for index, row in enumerate(rows) if index % 10 != 9][shard::2]
        write_parquet(folder / f"train-0000{shard}-of-00002.parquet", part, names)
    write_parquet(folder / "test-00000-of-00001.parquet", rows[9::10], names)
    dataset, lines = load(tmp_path / "hub" if nested else folder)
    assert dataset.labels == ("west", "east", "south", "north")
    assert "left out: classes without training images: unused" in lines
    expected = {
        (file.parent.name, prepare_image(file.read_bytes(), dataset.image).tobytes()) for file in files
    }
    assert pixels_by_label(dataset, test=False) | pixels_by_label(dataset, test=True) == expected
    assert len(dataset.test_labels) == 4


@needs_pyarrow
def test_names_of_labels_are_those_of_the_rows_however_accents_are_written(tmp_path: Path):
    """A class whose name the metadata spells with a separate accent, and one that it does not name."""
    files = sorted(write_classes(tmp_path / "p", per_class=3).rglob("*.png"))
    numbers = {"east": 1, "west": 0, "north": "e\u0301te", "south": "south"}

    def labels(names: tuple[str, ...], text: bool) -> tuple[str, ...]:
        rows = [
            {"img": file.read_bytes(), "label": str(numbers[file.parent.name]) if text else index}
            for file in files
            for index in [list(numbers).index(file.parent.name)]
        ]
        return load(write_parquet(tmp_path / "t.parquet", rows, names))[0].labels

    assert labels(("c", "b", "e\u0301te", "a"), text=False) == ("c", "b", "\u00e9te", "a")
    assert labels(("south", "e\u0301te"), text=True) == ("south", "\u00e9te", "0", "1")


@needs_pyarrow
def test_wrong_rows_of_parquet_are_named_and_the_others_keep_their_labels(tmp_path: Path):
    """The second pass over the bytes skips what the first found wrong."""
    files = sorted(write_classes(tmp_path / "p", per_class=10).rglob("*.png"))
    rows = [{"img": file.read_bytes(), "label": file.parent.name} for file in files]
    for index, row in enumerate(rows):
        row["split"] = "test" if index % 10 == 0 else "train"
    rows[5]["img"], rows[7]["label"], rows[12]["img"], rows[20]["label"] = None, None, b"x", "up"
    table = write_parquet(tmp_path / "t.parquet", rows)
    terminal = LineTerminal()
    with pytest.raises(DatasetError, match="4 of 40 images"):
        load_dataset(str(table), terminal=terminal)
    faults = (
        "row 5: has no image",
        "row 7: has no label",
        "row 12: not an image",
        "row 20: has the label 'up'",
    )
    for expected in faults:
        assert any(line.startswith(f"broken: t.parquet, {expected}") for line in terminal.lines), expected
    dataset, _ = load(table, skip_broken=True)
    expected_pixels = {
        (file.parent.name, prepare_image(file.read_bytes(), dataset.image).tobytes())
        for index, file in enumerate(files)
        if index not in (5, 7, 12, 20)
    }
    assert pixels_by_label(dataset, test=False) | pixels_by_label(dataset, test=True) == expected_pixels


@needs_pyarrow
def test_parquet_without_images_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="has no images: expected a column of bytes"):
        load(write_parquet(tmp_path / "t.parquet", [{"x": 1, "label": 0}]))


@needs_pyarrow
def test_a_column_of_pictures_taken_for_labels_is_not_held_in_messages(tmp_path: Path):
    rows = [{"image": bytes(100_000), "label": 0} for _ in range(3)]
    with pytest.raises(DatasetError, match="3 rows are wrong") as refused:
        load(write_parquet(tmp_path / "t.parquet", rows), label_column="image")
    assert "neither text nor a whole number" in str(refused.value)
    assert len(str(refused.value)) < 2000


@needs_pyarrow
def test_parquet_that_changes_meanwhile_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = sorted(write_classes(tmp_path / "p", per_class=10).rglob("*.png"))
    rows = [{"image": file.read_bytes(), "label": file.parent.name} for file in files]
    table = write_parquet(tmp_path / "t.parquet", rows)
    from foldserve.training.datasets import assemble

    decode_all = assemble.decode_all

    def shorten(*arguments: Any) -> Any:
        write_parquet(table, rows[:-1])
        return decode_all(*arguments)

    monkeypatch.setattr(assemble, "decode_all", shorten)
    with pytest.raises(DatasetError, match="the tables have changed while they were being read"):
        load(table)
