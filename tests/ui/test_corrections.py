"""Pictures kept with their right label: a folder that `train` takes, whatever the labels are called."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.datasets.folder_layout import find_layout
from foldserve.ui.corrections import Corrections, folder_name
from foldserve.ui.errors import UiError
from tests.support.encoded_images import encode

if TYPE_CHECKING:
    from pathlib import Path

TRICKS = (
    "../escape",
    "..",
    ".",
    "/etc/passwd",
    "a/../../b",
    "~",
    ".hidden",
    "a\\b",
    "C:",
    "lost+found",
    "end.",
)


def png_of_size(height: int, width: int) -> bytes:
    return encode(np.full((height, width), 7, dtype=np.uint8))


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_kept_pictures_are_a_data_set_that_train_takes(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path / "kept")
    for number, label in enumerate(("T-shirt/top", "bag", "bag")):
        kept = corrections.keep(png_of_size(4 + number, 4), label)
        assert kept.path.read_bytes() == png_of_size(4 + number, 4)
        assert kept.count == number + 1
    layout = find_layout(tmp_path / "kept")
    assert layout.labels == ("T-shirt%2Ftop", "bag")
    assert layout.splits["training"].labels == (0, 1, 1)
    assert not layout.left_out


@pytest.mark.parametrize("label", TRICKS)
def test_no_label_leads_out_of_the_folder_or_hides_the_picture(label: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "kept"
    kept = Corrections(folder).keep(png_of_size(4, 4), label)
    assert kept.path.parent.parent == folder
    assert files_under(tmp_path) == {str(kept.path.relative_to(tmp_path))}
    Corrections(folder).keep(png_of_size(5, 4), "another")
    assert len(find_layout(folder).labels) == 2


@given(st.sets(st.text(st.sampled_from(list("aé/\\:%2F5C.~<>|?*_@")), min_size=1, max_size=6)))
def test_different_labels_have_different_folders(labels: set[str]) -> None:
    names = {folder_name(label) for label in labels}
    assert len(names) == len(labels)
    for name in names:
        assert "/" not in name
        assert not name.startswith(".")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a\nb", "control characters"),
        ("a\0", "control"),
        ("x" * 300, "too long"),
    ],
)
def test_labels_that_cannot_name_a_folder_are_refused(label: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UiError, match=reason):
        Corrections(tmp_path).keep(png_of_size(4, 4), label)
    assert files_under(tmp_path) == set()


def test_a_picture_lies_under_the_label_that_was_given_last(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path)
    first = corrections.keep(png_of_size(4, 4), "cat")
    again = corrections.keep(png_of_size(4, 4), "cat")
    assert (first.path, first.count) == (again.path, again.count)
    moved = corrections.keep(png_of_size(4, 4), "dog")
    assert moved.moved_from == "cat"
    assert moved.count == 1
    assert files_under(tmp_path) == {f"dog/{first.path.name}"}


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UiError, match="not an image in a known format"):
        Corrections(tmp_path).keep(b"no picture", "cat")
    assert files_under(tmp_path) == set()


def test_a_full_folder_takes_no_more_and_says_what_to_do(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path, max_pictures=2)
    for side in (4, 5):
        corrections.keep(png_of_size(side, 4), "cat")
    with pytest.raises(UiError, match=r"is full: it has 2 pictures.*move them away"):
        corrections.keep(png_of_size(6, 4), "cat")
    assert corrections.keep(png_of_size(4, 4), "dog").count == 2  # moving one needs no room
    small = Corrections(tmp_path, max_bytes=10)
    with pytest.raises(UiError, match="is full"):
        small.keep(png_of_size(6, 4), "cat")


def test_labels_are_bounded_also_for_pictures_that_move(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path, max_labels=2)
    corrections.keep(png_of_size(4, 4), "cat")
    corrections.keep(png_of_size(5, 4), "dog")
    for side in (4, 6):
        with pytest.raises(UiError, match="has 2 labels, the most that are kept"):
            corrections.keep(png_of_size(side, 4), "cow")
    assert corrections.keep(png_of_size(4, 4), "dog").moved_from == "cat"
    assert [path.name for path in tmp_path.iterdir()] == ["dog"], "train refuses a label without pictures"
    corrections.keep(png_of_size(4, 4), "cow")
    assert len(find_layout(tmp_path).labels) == 2


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "kept"
    corrections = Corrections(folder)
    (folder / "cat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UiError, match="is a link"):
        corrections.keep(png_of_size(4, 4), "cat")
    assert files_under(tmp_path / "elsewhere") == set()


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UiError, match="was not kept: No space left on device"):
        Corrections(tmp_path).keep(png_of_size(4, 4), "cat")
    assert not list(tmp_path.iterdir())


def test_visitors_at_the_same_time_lose_no_picture(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path)
    threads = [
        threading.Thread(target=corrections.keep, args=(png_of_size(4 + number, 3), f"label {number % 3}"))
        for number in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files_under(tmp_path)) == 24


def test_a_folder_that_cannot_be_made_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UiError, match=r"--keep .*file.* cannot be made"):
        Corrections(tmp_path / "file" / "kept")
