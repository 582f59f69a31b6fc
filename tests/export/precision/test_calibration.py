"""Lower precisions of networks that were not trained here: images of a folder calibrate and judge."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from foldserve.artifact.format import read_artifact
from foldserve.export.config import ExportConfig
from foldserve.export.errors import PrecisionError
from foldserve.export.pipeline import export_model
from foldserve.export.precision import choose
from foldserve.export.precision.calibration import FEWEST_IMAGES, split_images
from foldserve.export.precision.speed import Speed
from foldserve.export.sources.source import VerificationImages
from tests.support.taught import Taught

COUNT = 48
CLASSES = 10


def images_of(count: int, side: int = 8):
    return np.random.default_rng(0).integers(0, 256, (count, 1, side, side), dtype=np.uint8)


def folder_of(images, labels=None) -> VerificationImages:
    return VerificationImages(images, labels, synthetic=False, origin="images of pictures")


def logits_of(count: int):
    return np.random.default_rng(1).normal(size=(count, CLASSES)).astype(np.float32)


def contents(images) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("copies", [1, 3])
def test_no_image_calibrates_and_judges(copies):
    images = np.concatenate([images_of(40)] * copies)
    labels = np.arange(len(images)) % CLASSES
    split = split_images(folder_of(images, labels), logits_of(len(images)))
    calibrating, judging = contents(split.training), contents(split.validation)
    assert not calibrating & judging
    assert calibrating | judging == contents(images)
    assert len(split.training) == len(calibrating) == 10
    assert len(split.validation) == len(split.labels) == 30 * copies
    known = {image.tobytes(): set() for image in images}
    for image, label in zip(images, labels, strict=True):
        known[image.tobytes()].add(label)
    assert all(
        label in known[image.tobytes()] for image, label in zip(split.validation, split.labels, strict=True)
    )


def test_split_is_the_same_each_time_and_bounded():
    folder, expected = folder_of(images_of(4000, side=2)), logits_of(4000)
    first, second = split_images(folder, expected), split_images(folder, expected)
    assert np.array_equal(first.training, second.training)
    assert np.array_equal(first.validation, second.validation)
    distinct = len(contents(folder.images))
    assert len(first.training) == 512 < distinct // 4
    large = split_images(folder_of(images_of(640, side=65)), logits_of(640))
    assert len(large.training) == 128


def test_without_labels_the_network_gives_them():
    images, expected = images_of(20), logits_of(20)
    split = split_images(folder_of(images), expected)
    assert not split.are_labels_true
    answers = {image.tobytes(): answer for image, answer in zip(images, expected.argmax(axis=1), strict=True)}
    assert split.labels.tolist() == [answers[image.tobytes()] for image in split.validation]


@pytest.mark.parametrize(
    ("count", "copies", "is_enough"),
    [(FEWEST_IMAGES, 1, True), (FEWEST_IMAGES - 1, 1, False), (5, 10, False)],
)
def test_too_few_different_images_are_refused(count, copies, is_enough):
    images = np.concatenate([images_of(count)] * copies)
    if is_enough:
        assert len(split_images(folder_of(images), logits_of(count)).training) == count // 4
        return
    with pytest.raises(PrecisionError, match=f"needs 16 different images .* --images holds {count}"):
        split_images(folder_of(images), logits_of(count * copies))


def test_synthetic_images_are_refused():
    synthetic = dataclasses.replace(folder_of(images_of(40)), synthetic=True)
    with pytest.raises(PrecisionError, match="give a folder of them with --images"):
        split_images(synthetic, logits_of(40))


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """int8 takes half the time."""
    speeds = [Speed("CPUExecutionProvider", 1, 1, 2.0, 1.0)]
    monkeypatch.setattr(choose, "measure_speed", lambda *_: speeds)


def write_source(taught: Taught, folder, kind: str) -> dict[str, object]:
    """Write the taught network as its user would have it; return the flags that name it."""
    (folder / "labels.txt").write_text("\n".join(taught.checkpoint.labels))
    flags = {"labels": folder / "labels.txt", "repository": folder / "models", "name": "taught"}
    flags |= {"mean": taught.checkpoint.mean, "std": taught.checkpoint.std}
    network = taught.checkpoint.build().network.eval()
    if kind == "own network":
        torch.save(network.state_dict(), folder / "weights.pt")
        return flags | {"arch": "lenet", "weights": folder / "weights.pt", "input": "1x28x28"}
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        optimize=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    program.save(folder / "theirs.onnx")
    return flags | {"source": folder / "theirs.onnx"}


def write_images(taught: Taught, folder, *, labelled: bool) -> None:
    images, labels = taught.dataset.test_images.numpy(), taught.dataset.test_labels.tolist()
    for index in range(COUNT):
        parent = folder / taught.checkpoint.labels[labels[index]] if labelled else folder
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index, 0]).save(parent / f"{index:03}.png")


@pytest.mark.filterwarnings("ignore")  # PyTorch's exporter warns of itself
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(("own network", True, "int8"), id="own network, labels, int8"),
        pytest.param(("onnx", False, "fp16"), id="ONNX file, no labels, fp16"),
    ],
)
def test_networks_from_elsewhere_are_published_in_lower_precision(case, taught, tmp_path, capsys):
    kind, labelled, name = case
    write_images(taught, tmp_path / "pictures", labelled=labelled)
    flags = write_source(taught, tmp_path, kind)
    export_model(ExportConfig(**flags, images=tmp_path / "pictures", precision=name, max_accuracy_drop=20))
    manifest = read_artifact(tmp_path / "models/taught/1").manifest
    assert manifest["precision"] == name, manifest["precision_trials"]
    (trial,) = manifest["precision_trials"]
    validation = trial["validation"]
    assert (validation["calibration_image_count"], validation["image_count"]) == (12, 36)
    assert validation["images"] == "images of pictures"
    assert validation["accuracy_before"] == 1.0
    assert validation["labels"] == ("known" if labelled else "the network's own answers")
    low, high = validation["drop_points_95"]
    assert low < validation["drop_points"] < high
    printed = capsys.readouterr().out
    assert "on 36 images of pictures, 12 others calibrated" in printed
    assert "95 % interval" in printed
    assert ("(there are no labels)" in printed) == (not labelled)


def test_what_the_images_cannot_tell_is_printed_and_recorded(taught, tmp_path, capsys):
    write_images(taught, tmp_path / "pictures", labelled=True)
    flags = write_source(taught, tmp_path, "own network") | {"mean": (-1.0,), "std": (2e-4,)}
    export_model(ExportConfig(**flags, images=tmp_path / "pictures", precision="fp16"))
    (trial,) = read_artifact(tmp_path / "models/taught/1").manifest["precision_trials"]
    few, one = "36 images are too few to tell a loss of 0.3 points", "for all 36 images that judge"
    recorded, printed = " ".join(trial["validation"]["warnings"]), capsys.readouterr().out
    for said in (few, one):
        assert said in recorded
        assert said in printed


def test_without_images_the_refusal_says_what_to_give(taught, tmp_path, capsys):
    export_model(ExportConfig(**write_source(taught, tmp_path, "own network"), precision="int8"))
    artifact = read_artifact(tmp_path / "models/taught/1")
    assert artifact.manifest["precision"] == "fp32"
    assert "give a folder of them with --images" in artifact.manifest["precision_trials"][0]["reasons"][0]
    assert "int8 is not published, fp32 is: it needs real images" in capsys.readouterr().out
