"""`foldserve models diff`: what differs between two versions, and their answers."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve import cli
from foldserve.imaging import ImageSpec
from foldserve.local.local_model import LocalModel
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2 are different networks; 3 is 1 again, exported on another day."""
    repository = tmp_path_factory.mktemp("published")
    for seed in (2, 25, 2):
        TinyNetwork(seed).publish(repository / "tiny")
    file = repository / "tiny" / "3" / "manifest.json"
    manifest = json.loads(file.read_text()) | {"created_at": "2026-02-03T04:05:06+00:00"}
    file.write_text(json.dumps(manifest))
    return repository


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, pixels in enumerate(TinyNetwork().random_images(40, seed=5)):
        # Of different brightness, since noise alone is one class for most networks.
        Image.fromarray((pixels[0] * (index / 40)).astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


def diff(repository: Path, first: int, second: int, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    words = ["models", "diff", "tiny", str(first), str(second), "--repository", str(repository)]
    assert cli.main([*words, "--device", "cpu", *flags]) == 0
    return capsys.readouterr().out


def test_only_what_differs_is_printed(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = diff(published, 1, 2, capsys).splitlines()
    assert [line.split()[0] for line in lines] == ["tiny/1", "sha256"]
    lines = diff(published, 1, 3, capsys).splitlines()
    assert [line.split()[0] for line in lines] == ["tiny/1", "date"]
    assert "are the same in all that is compared: sha256, date" in diff(published, 1, 1, capsys)


def test_another_rule_for_other_shapes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fit in ("crop", "pad"):
        TinyNetwork(2, ImageSpec("L", 8, 8, 8, fit=fit)).publish(tmp_path / "tiny")
    lines = diff(tmp_path, 1, 2, capsys).splitlines()
    (preparation,) = [line for line in lines if line.startswith("preparation")]
    assert "scaled to cover the input" in preparation
    assert "mirrored at the borders" in preparation


def test_answers_are_counted_as_two_models_give_them(
    published: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(pictures.iterdir())
    answers = []
    for version in (1, 2):
        with LocalModel(published / "tiny" / str(version), device="cpu") as model:
            answers.append(model.predict(files))
    pairs = zip(files, answers[0].labels(), answers[1].labels(), strict=True)
    different = {file.name for file, first, second in pairs if first != second}
    assert different, "the test needs networks that differ in some answers"
    assert len(different) < len(files)
    printed = diff(published, 1, 2, capsys, "--images", str(pictures), "--most-shown", "100")
    assert f"the same label for {len(files) - len(different)} of {len(files)} images" in printed
    shown = {
        line.split(":")[0].strip()
        for line in printed.splitlines()
        if line.startswith("  ") and ".png" in line
    }
    assert shown == different
    largest = np.abs(answers[0].logits - answers[1].logits).max()
    assert f"{largest:.3g} in a logit" in printed
    few = diff(published, 1, 2, capsys, "--images", str(pictures), "--most-shown", "1")
    assert sum(".png: " in line for line in few.splitlines()) == 1


def test_what_is_left_out_is_said(
    published: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "p")
    (folder / "a.tif").touch()
    words = ["models", "diff", "tiny", "1", "3", "--repository", str(published), "--images", str(folder)]
    assert cli.main(words) == 0
    assert "left out: 1 .tif; images are read from .bmp" in capsys.readouterr().err


def test_twins_answer_the_same(published: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = diff(published, 1, 3, capsys, "--images", str(pictures))
    assert "the same label for 40 of 40 images (100.00%)" in printed
    assert "largest difference: 0 in a logit, 0 in a probability" in printed


def test_the_promoted_version_is_the_one_that_a_folder_means(published: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(published, tmp_path / "models")
    with LocalModel(repository / "tiny", device="cpu") as model:
        assert model.version == "3"
    assert cli.main(["models", "promote", "tiny", "2", "--repository", str(repository)]) == 0
    with LocalModel(repository / "tiny", device="cpu") as model:
        assert model.version == "2"
