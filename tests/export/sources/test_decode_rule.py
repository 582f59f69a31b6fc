"""Pictures are prepared by the rule that the run was trained by: when it is exported, and when it goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from foldserve.export.config import ExportConfig
from foldserve.export.sources.load import load_source
from foldserve.imaging import ImageSpec, prepare_image
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import load_dataset
from foldserve.training.errors import RunError
from foldserve.training.run import train as module
from foldserve.training.run.train import train
from tests.support.encoded_images import photograph
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """JPEG files large enough for a quarter of their size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for label in ("a", "b"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                seed = len(split) * 100 + ord(label) + number
                photograph(320, 240, seed).save(folder / f"{number}.jpg", quality=90)
    return tmp_path / "pictures"


def settings(tmp_path: Path, pictures: Path, epochs: int = 1) -> TrainConfig:
    return TrainConfig(
        dataset=str(pictures), run_dir=tmp_path / "run", epochs=epochs, batch_size=4, image_size=28
    )


def prepared(pictures: Path, spec: ImageSpec) -> np.ndarray:
    files = sorted((pictures / "test").rglob("*.jpg"))
    return np.stack([prepare_image(file.read_bytes(), spec) for file in files])


def forget_rule(file: Path) -> None:
    """Make a checkpoint what versions wrote that had one rule only."""
    payload = torch.load(file, weights_only=True)
    del payload["image"]["decode"]
    torch.save(payload, file)


def test_a_run_is_exported_by_the_rule_that_it_was_trained_by(tmp_path: Path, pictures: Path) -> None:
    config = settings(tmp_path, pictures)
    assert train(config, LineTerminal()) == 0
    seen = []
    for rule in ("scaled", "full"):
        source = load_source(ExportConfig(source=config.run_dir))
        assert source.metadata.image.decode == rule
        assert np.array_equal(source.verification.images, prepared(pictures, source.metadata.image))
        seen.append(source.verification.images)
        if rule == "scaled":
            forget_rule(tmp_path / "run" / "best.pt")
    assert not np.array_equal(*seen)


def test_a_run_goes_on_by_the_rule_that_it_began_with(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before its end, and begun by a version with one rule only."""
    loaded = []

    def watch(*arguments: object, **options: object) -> object:
        dataset = load_dataset(*arguments, **options)  # type: ignore[arg-type]
        # As if all earlier runs had decoded so.
        if not loaded:
            dataset = load_dataset(*arguments, **(options | {"decode": "full"}))  # type: ignore[arg-type]
        loaded.append(dataset.image.decode)
        return dataset

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    config = settings(tmp_path, pictures, epochs=2)
    monkeypatch.setattr(module, "load_dataset", watch)
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_and_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config, LineTerminal())
    forget_rule(tmp_path / "run" / "last.pt")
    assert train(config, LineTerminal()) == 0
    assert loaded == ["full", "full"]
    assert load_checkpoint(tmp_path / "run").image.decode == "full"


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_run_is_exported_with_its_fit(tmp_path: Path, pictures: Path, fit: str) -> None:
    config = settings(tmp_path, pictures).model_copy(update={"fit": fit})
    terminal = LineTerminal()
    assert train(config, terminal) == 0
    assert any("16 of 16 images are of another shape and" in line for line in terminal.lines)
    source = load_source(ExportConfig(source=config.run_dir))
    assert source.metadata.image == ImageSpec("RGB", 28, 28, 28, "scaled", fit)  # type: ignore[arg-type]
    assert np.array_equal(source.verification.images, prepared(pictures, source.metadata.image))
    others = [
        prepared(pictures, replace(source.metadata.image, fit=rule)) for rule in ("crop", "pad", "stretch")
    ]
    assert sum(np.array_equal(source.verification.images, other) for other in others) == 1
    with pytest.raises(RunError, match="fit is"):
        train(config.model_copy(update={"fit": "pad" if fit != "pad" else "crop"}), LineTerminal())


def test_decoded_pictures_are_kept_by_rule(pictures: Path) -> None:
    scaled, full, again = (
        load_dataset(str(pictures), image_size=28, decode=rule, terminal=LineTerminal())  # type: ignore[arg-type]
        for rule in ("scaled", "full", "scaled")
    )
    assert not torch.equal(scaled.test_images, full.test_images)
    assert torch.equal(scaled.test_images, again.test_images)
    assert np.array_equal(full.test_images.numpy(), prepared(pictures, replace(scaled.image, decode="full")))
