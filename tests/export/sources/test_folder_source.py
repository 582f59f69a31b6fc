"""A run that was trained on a folder of images is exported with that folder's own test images."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.export.config import ExportConfig
from foldserve.export.errors import SourceError
from foldserve.export.precision.calibration import load_calibration
from foldserve.export.sources.load import load_source
from foldserve.export.sources.verification_images import synthetic_images
from foldserve.imaging import ImageSpec, prepare_image
from foldserve.training.config import TrainConfig
from foldserve.training.errors import DatasetError
from foldserve.training.run.train import train
from tests.support.image_folders import LABELS, write_classes
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path


def test_verification_images_are_the_folders_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = tmp_path / "pictures"
    write_classes(pictures / "train", per_class=8, size=(40, 30), mode="RGB")
    write_classes(pictures / "val", per_class=3, size=(40, 30), mode="RGB", seed=1)
    (pictures / "val" / "north" / "001.png").write_bytes(b"not an image")
    config = TrainConfig(
        dataset=str(pictures),
        run_dir=tmp_path / "run",
        epochs=1,
        batch_size=8,
        image_size=28,
        skip_broken=True,
    )
    assert train(config, LineTerminal()) == 0

    source = load_source(ExportConfig(source=config.run_dir))
    assert source.metadata.labels == LABELS
    assert not source.verification.synthetic
    files = [path for path in sorted((pictures / "val").rglob("*.png")) if path.stat().st_size > 20]
    expected = np.stack([prepare_image(path.read_bytes(), source.metadata.image) for path in files])
    assert np.array_equal(source.verification.images, expected)
    assert source.verification.labels is not None
    assert source.verification.labels.tolist() == [LABELS.index(path.parent.name) for path in files]

    few = load_source(ExportConfig(source=config.run_dir, verify_images=len(LABELS))).verification
    assert few.labels is not None
    assert sorted(few.labels) == list(range(len(LABELS))), "a part of the images must not be of a few classes"

    assert source.metadata.provenance["dataset"] == source.facts["dataset"] == "pictures"
    assert str(tmp_path) not in source.verification.origin

    assert not any("changed" in remark for remark in source.remarks)

    moved = shutil.move(pictures, tmp_path / "elsewhere")
    with pytest.raises(
        DatasetError, match="does not exist; if it has moved, give its new place with --data-dir"
    ):
        load_source(ExportConfig(source=config.run_dir))
    assert np.array_equal(
        load_source(ExportConfig(source=config.run_dir, data_dir=moved)).verification.images, expected
    )


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExportConfig:
    """A run on a folder without splits, as the export takes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = write_classes(tmp_path / "pictures", per_class=8)
    run = TrainConfig(dataset=str(pictures), run_dir=tmp_path / "run", epochs=1, batch_size=8)
    assert train(run, LineTerminal()) == 0
    return ExportConfig(source=run.run_dir)


def test_images_changed_since_training_cause_a_warning(tmp_path: Path, trained: ExportConfig):
    """Names, sizes and times are as they were; a moved folder is no change."""
    assert not any("changed" in remark for remark in load_source(trained).remarks)
    north, south = (tmp_path / "pictures" / label / "000.png" for label in ("north", "south"))
    north.rename(tmp_path / "aside")
    south.rename(north)
    (tmp_path / "aside").rename(south)
    (remark,) = [remark for remark in load_source(trained).remarks if "changed" in remark]
    assert remark.startswith("warning: the images of pictures have changed since training")


def calibrate(config: ExportConfig):
    """Load calibration images; a run has its own, whatever it is verified on."""
    return load_calibration(
        config, synthetic_images(ImageSpec("L", 8, 8, 8), 4), np.zeros((4, 2), np.float32)
    )


@pytest.mark.parametrize("load", [load_source, calibrate])
def test_other_classes_than_those_of_the_training_are_refused(tmp_path: Path, trained: ExportConfig, load):
    """A class that came since would give each later one the label before it."""
    write_classes(tmp_path / "pictures", per_class=8, labels=("middle",))
    with pytest.raises(SourceError, match=r"pictures has other classes .* 1 new \(middle\), 0 gone .* train"):
        load(trained)
