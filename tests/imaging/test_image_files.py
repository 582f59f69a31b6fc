"""Finding image files: in order, in bounded memory."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.errors import ImageError
from foldserve.imaging import image_files
from foldserve.imaging.image_files import walk_images
from foldserve.imaging.left_out import LeftOut

if TYPE_CHECKING:
    from pathlib import Path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["a/b.png", "a/c/d.JPG", "a.png", "a!.gif", "b/x.webp", "é.bmp", "a/b/z.jpeg"]
    touch(tmp_path, *names, "notes.txt", ".hidden.png", ".git/x.png", "@eaDir/x.png", "__MACOSX/x.png")
    expected = sorted(tmp_path / name for name in names)
    assert [tmp_path / name for name in walk_images(tmp_path)] == expected


@given(names_held=st.integers(1, 12))
def test_order_does_not_depend_on_the_names_held(
    tmp_path_factory: pytest.TempPathFactory, names_held: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "walked"
    if not folder.exists():
        touch(folder, *(f"{place % 3}/{place:02}.png" for place in range(30)), "a.png", "0.png")
    assert list(walk_images(folder, names_held)) == list(walk_images(folder))
    assert len(list(walk_images(folder, names_held))) == 32


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to(tmp_path / "a" / "x.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "none.png")
    os.mkfifo(tmp_path / "fifo.png")
    assert list(walk_images(tmp_path)) == ["a/x.png", "linked.png"]


def test_links_to_folders_are_followed_where_asked_and_no_deeper(tmp_path: Path) -> None:
    touch(tmp_path, "store/x.png", "root/train/real/y.png")
    root = tmp_path / "root"
    for name in ("top", "train/class", "train/real/deep"):
        (root / name).symlink_to(tmp_path / "store")
    (root / "round").symlink_to(root)
    (root / "itself.png").symlink_to(root / "itself.png")
    assert list(walk_images(root)) == ["train/real/y.png"]
    assert list(walk_images(root, links_in={""})) == [
        "round/train/real/y.png",
        "top/x.png",
        "train/real/y.png",
    ]
    assert list(walk_images(root, links_in={"train"})) == ["train/class/x.png", "train/real/y.png"]


@pytest.mark.parametrize("names_held", [1, 50_000])
def test_what_is_left_out_is_counted_once_however_few_names_are_held(tmp_path: Path, names_held: int) -> None:
    touch(tmp_path, "a/x.png", "a/1.tif", "a/2.TIF", "a/README", "b/y.png", ".DS_Store", "__MACOSX/x.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "dangling.png").symlink_to(tmp_path / "none.png")
    left_out = LeftOut(tmp_path)
    assert list(walk_images(tmp_path, names_held, left_out=left_out)) == ["a/x.png", "b/y.png"]
    suffixes, *others = left_out.lines()
    assert suffixes.startswith("2 .tif, 1 without a suffix; images are read from .bmp, ")
    assert others == [
        "linked folders (1): a/loop with 1 images; links inside a class are not followed: put the images "
        "there",
        "hidden names and folders of the system (2): .DS_Store, __MACOSX",
        "names that are not files, such as broken links (1): b/dangling.png",
    ]
    found = list(walk_images(tmp_path, names_held, with_broken_links=True))
    assert found == ["a/x.png", "b/dangling.png", "b/y.png"]


def test_memory_does_not_grow_with_what_is_left_out(tmp_path: Path) -> None:
    left_out = LeftOut(tmp_path)
    for number in range(3000):
        left_out.add(f"{tmp_path}/scan.{number:06}")
        left_out.add(f"{tmp_path}/.{number:06}")
    assert len(left_out.suffixes) <= 1001
    assert left_out.suffixes.total() == 3000
    assert left_out.lines()[1].endswith("(3,000): .000000, .000001, .000002 and 2,997 more")


def test_missing_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="none cannot be listed: No such file or directory"):
        next(walk_images(tmp_path / "none"))


def test_memory_does_not_grow_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up folder of 20,000 names, of which 200 are held: all of them would be some 2 MB."""

    class Entry:
        def __init__(self, number: int) -> None:
            self.name = f"picture-{number * 7919 % 20_000:06}.png"

        def is_dir(self, **_: bool) -> bool:
            return False

        def is_file(self) -> bool:
            return True

    class Listing:
        def __enter__(self) -> object:
            return (Entry(number) for number in range(20_000))

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(image_files.os, "scandir", lambda _: Listing())
    tracemalloc.start()
    try:
        walked = walk_images(tmp_path, names_held=200)
        first = [next(walked) for _ in range(500)]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert first == [f"picture-{number:06}.png" for number in range(500)]
    assert peak_bytes < 400_000
