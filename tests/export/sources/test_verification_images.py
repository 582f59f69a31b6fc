"""A folder of images to prove an export with is read as training reads one, and says what it leaves out."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

from PIL import Image

from foldserve.export.sources.verification_images import load_verification_images
from foldserve.imaging import ImageSpec
from tests.support.image_folders import write_classes

if TYPE_CHECKING:
    from pathlib import Path

SPEC = ImageSpec("L", 28, 28, 28)


def test_skipped_files_are_listed_in_remarks(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=9, labels=("a", "b"))
    write_classes(folder / "a" / ".thumbnails", per_class=3)
    write_classes(folder / "b" / "@eaDir", per_class=3)
    write_classes(tmp_path / "elsewhere", per_class=5, labels=("more",))
    (folder / "b" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (folder / "a" / "1.tif").write_bytes(b"x")
    verification, remarks = load_verification_images(folder, SPEC, ("a", "b"), None)
    assert len(verification.images) == 18
    told = "\n".join(remarks)
    for expected in (
        "left out: 1 .tif; images are read from",
        "b/more with 5 images; links",
        "a/.thumbnails, b/@eaDir",
    ):
        assert expected in told


def test_ignored_subfolders_are_listed_in_remarks(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=3)
    Image.new("L", (28, 28)).save(folder / "flat.png")
    verification, remarks = load_verification_images(folder, SPEC, ("a", "b"), None)
    assert len(verification.images) == 1
    assert "left out: 12 images in subfolders, beside 1" in remarks


def test_names_that_look_like_a_label_belong_to_it(tmp_path: Path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    folder = write_classes(tmp_path / "p", per_class=2, labels=(decomposed, "tea"))
    for labels in ((composed, "tea"), (decomposed, "tea")):
        verification, _ = load_verification_images(folder, SPEC, labels, None)
        assert verification.labels is not None
        assert verification.labels.tolist() == [0, 0, 1, 1]


def test_file_names_that_are_not_utf_8_are_read(tmp_path: Path):
    folder = write_classes(tmp_path / "p", per_class=2, labels=("a", "b"))
    (folder / "a" / "000.png").rename(folder / "a" / os.fsdecode(b"caf\xe9.png"))
    verification, _ = load_verification_images(folder, SPEC, ("a", "b"), None)
    assert len(verification.images) == 4
