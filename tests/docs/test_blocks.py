"""Every command block of the documentation runs, or says why it does not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from foldserve.imaging import ImageSpec
from tests.support.artifacts import TinyNetwork
from tests.support.doc_blocks import Block, Reader, blocks_of, pages
from tests.support.image_folders import write_classes
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("bag", "coat", "shirt")
BLOCKS = {page: blocks_of(page) for page in pages()}
QUICK = [page for page, blocks in BLOCKS.items() if any(not (b.reason or b.is_slow) for b in blocks)]
SLOW = [page for page, blocks in BLOCKS.items() if any(b.is_slow for b in blocks)]

# Pages whose commands need nothing but examples/, and the settings that shorten them.
FROM_NOTHING = {"README.md": {"FOLDSERVE_TRAIN_EPOCHS": "1"}, "docs/tutorial.md": {}}


def test_blocks_are_found() -> None:
    found = [block for blocks in BLOCKS.values() for block in blocks]
    assert len(found) > 40
    assert {"docs/tutorial.md", "README.md"} <= set(SLOW)


def test_a_block_that_is_not_run_says_why() -> None:
    for blocks in BLOCKS.values():
        for block in blocks:
            if block.marker and not block.is_slow:
                assert len(block.reason) > 10, f"{block}: the comment above it is neither 'slow' nor a reason"


@pytest.mark.parametrize("page", pages())
def test_commands_are_in_blocks_that_say_what_they_are(page: str) -> None:
    assert typed_without_a_language((ROOT / page).read_text()) == [], "give the block the language sh"


def test_a_command_without_a_language_is_found() -> None:
    text = "```sh\nfoldserve demo\n```\n\n```\noutput\n```\n\n```\nfoldserve train\n```\n"
    assert typed_without_a_language(text) == ["foldserve train"]


def typed_without_a_language(text: str) -> list[str]:
    """Return what a reader would type in fences that should hold output or a picture of folders."""
    lines, language = [], None
    for line in text.splitlines():
        if line.startswith("```"):
            language = line.removeprefix("```") if language is None else None
        elif language == "":
            lines.append(line)
    return [line for line in lines if re.match(r"(\$ |foldserve \w+|make |pip |curl )", line)]


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    with Reader(tmp_path, tmp_path / "state") as reader:
        assert reader.run(Block("page", 1, "sh", "echo one\n", "")) == "one\n"
        for kind, text in (
            ("sh", "false\ntrue\n"),
            ("sh", "foldserve serve --port abc\n"),
            ("python", "1 / 0"),
        ):
            with pytest.raises(AssertionError, match="page:1"):
                reader.run(Block("page", 1, kind, text, ""))


@pytest.mark.parametrize("page", QUICK)
def test_quick_commands_work(page: str, tmp_path: Path) -> None:
    """With a tiny network in place of what the slow commands leave."""
    folder = tmp_path / "reader"
    network = TinyNetwork(image=ImageSpec("L", 28, 28, 28))
    network.labels = LABELS
    for _ in range(2):
        network.publish(folder / "models" / "lenet")
    _write_pictures(folder, LABELS)
    with Reader(folder, tmp_path / "state") as reader:
        for block in BLOCKS[page]:
            if not (block.reason or block.is_slow):
                reader.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_all_commands_work(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With a LeNet that was trained for some seconds on a folder of pictures."""
    folder = tmp_path / "reader"
    if page in FROM_NOTHING:
        folder.mkdir()
        (folder / "examples").symlink_to(ROOT / "examples")
    else:
        shutil.copytree(request.getfixturevalue("trained"), folder, symlinks=True)
    with Reader(folder, tmp_path / "state", FROM_NOTHING.get(page, {})) as reader:
        for block in BLOCKS[page]:
            if not block.reason:
                reader.run(block)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "reader"
    write_classes(folder / "pictures", per_class=40, labels=LABELS)
    _write_pictures(folder, LABELS)
    train = "train --arch lenet --dataset pictures --run-dir runs/lenet --epochs 4 --threads 1"
    export = "export runs/lenet --repository models --name lenet"
    for command in (train, export, f"{export} --no-skip-same"):
        words = [sys.executable, "-m", "foldserve", *command.split()]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _write_pictures(folder: Path, labels: tuple[str, ...]) -> None:
    """Write what the pages call pictures, picture.png, labels.csv and photo.jpg."""
    write_classes(folder / "pictures", per_class=2, labels=labels)
    picture = folder / "pictures" / labels[0] / "000.png"
    shutil.copy(picture, folder / "picture.png")
    Image.open(picture).save(folder / "photo.jpg")
    rows = [f"pictures/{label}/000.png,{label}" for label in labels]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows, ""]))
    samples = folder / "runs" / "lenet" / "report" / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    for label in labels:
        shutil.copy(folder / "pictures" / label / "000.png", samples / f"{label}.png")
    (folder / "examples").symlink_to(ROOT / "examples")
