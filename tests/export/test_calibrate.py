"""The temperature: fitted as defined, in the graph alone, proven wherever probabilities are."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from foldserve.artifact.calibration import ReliabilityBins
from foldserve.artifact.format import IMAGE, OUTPUTS, ModelMetadata, read_artifact
from foldserve.artifact.model_outputs import softmax, softmax_errors
from foldserve.errors import ArtifactError
from foldserve.export.calibrate import Calibration, best_temperature, fit
from foldserve.export.config import ExportConfig
from foldserve.export.pipeline import export_model
from foldserve.export.report import Report
from foldserve.export.verification.reference import TorchReference
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.session import Session
from foldserve.runtime.verified_model import open_verified
from foldserve.training.checkpoint import Checkpoint, save_checkpoint
from foldserve.training.datasets import Dataset
from foldserve.training.datasets.dataset import Examples
from foldserve.training.datasets.registry import DATASETS
from tests.support.strange_versions import change_metadata, mend_hashes

if TYPE_CHECKING:
    from pathlib import Path

TRUE_TEMPERATURE = 3.0


def drawn(logits: np.ndarray, temperature: float, seed: int = 0) -> np.ndarray:
    """Labels drawn with the probabilities softmax(logits / temperature)."""
    uniform = np.random.default_rng(seed).random((len(logits), 1))
    return (softmax(logits / temperature).cumsum(axis=1) < uniform).sum(axis=1).clip(max=logits.shape[1] - 1)


def likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits / temperature)[np.arange(len(labels)), labels]).mean())


@given(temperature=st.floats(0.2, 8), seed=st.integers(0, 99), class_count=st.integers(2, 12))
def test_fit_has_the_least_negative_log_likelihood(temperature: float, seed: int, class_count: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 4, (300, class_count)).astype(np.float32)
    labels = drawn(logits, temperature, seed)
    found = best_temperature(logits, labels)
    assert found == best_temperature(logits.copy(), labels)
    lowest = likelihood(logits, labels, found)
    for other in np.geomspace(0.05, 20, 40):
        assert lowest <= likelihood(logits, labels, other) + 1e-6


def test_fit_finds_the_temperature_that_drew_the_labels() -> None:
    logits = np.random.default_rng(1).normal(0, 6, (20_000, 10)).astype(np.float32)
    for temperature in (0.5, 1.0, 3.0):
        assert best_temperature(logits, drawn(logits, temperature)) == pytest.approx(temperature, rel=0.05)


def test_fit_lowers_the_calibration_error_of_other_images() -> None:
    logits = np.random.default_rng(1).normal(0, 6, (4000, 10)).astype(np.float32)
    labels = drawn(logits, TRUE_TEMPERATURE)
    calibration = fit(logits[:1000], labels[:1000], "images")
    errors = []
    for temperature in (1.0, calibration.temperature):
        bins = ReliabilityBins()
        probabilities = softmax(logits[1000:] / temperature)
        bins.add(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels[1000:])
        errors.append(bins.error)
    assert errors[0] > 0.15
    assert errors[1] < 0.05


def test_too_little_to_fit_on_leaves_probabilities_as_they_are() -> None:
    logits = np.eye(10, dtype=np.float32)[np.arange(400) % 10] * 9
    right = np.arange(400) % 10
    wrong = np.where(np.arange(400) < 40, (right + 1) % 10, right)
    few = fit(logits[:99], wrong[:99], "validation images")
    assert (few.temperature, few.reason) == (1.0, "99 validation images are too few; 100 are needed")
    assert "0 mistakes are too few" in fit(logits, right, "images").reason  # its best temperature would be 0
    assert fit(logits, wrong, "images").temperature > 1.5
    assert fit(logits * np.float32("nan"), wrong, "images").reason == "the logits are not finite"


@pytest.fixture(scope="module")
def doubtful(checkpoint: Checkpoint) -> tuple[Checkpoint, Dataset]:
    """A network that is far too sure: its labels were drawn at three times its temperature."""
    images = np.random.default_rng(5).integers(0, 256, (900, 1, 7, 7), dtype=np.uint8)
    images = images.repeat(4, axis=2).repeat(4, axis=3)
    logits = TorchReference(checkpoint.build()).logits(images)
    labels = torch.from_numpy(drawn(logits, TRUE_TEMPERATURE).astype(np.int64))
    labels[:10] = torch.arange(10)
    parts = [
        (torch.from_numpy(images[part]), labels[part])
        for part in (slice(20), slice(20, 520), slice(520, 720))
    ]
    dataset = Dataset(
        name="doubtful",
        labels=checkpoint.labels,
        image=checkpoint.image,
        train_images=parts[0][0],
        train_labels=parts[0][1],
        validation=Examples(*parts[1]),
        test_images=parts[2][0],
        test_labels=parts[2][1],
    )
    return dataclasses.replace(checkpoint, dataset="doubtful"), dataset


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, doubtful: tuple[Checkpoint, Dataset]):
    """Export it as the command does, once with the same settings, and return the version's folder."""
    folder = tmp_path_factory.mktemp("doubtful")
    save_checkpoint(folder / "best.pt", doubtful[0])
    done: dict[str, Path] = {}

    def run(name: str = "calibrated", **settings: object) -> Path:
        if name not in done:
            config = ExportConfig(source=folder, repository=folder / "models", name=name, **settings)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(DATASETS, "doubtful", lambda *_: doubtful[1])
                assert export_model(config) == 0
            done[name] = folder / "models" / name / "1"
        return done[name]

    return run


def run_file(version: Path, images: np.ndarray) -> list[np.ndarray]:
    return Session((version / "model.onnx").read_bytes(), device="cpu").run(OUTPUTS, {IMAGE: images})


def test_only_probabilities_change_and_the_manifest_says_how(export, doubtful) -> None:
    calibrated = export()
    plain = export("plain", calibrate=False)
    images = doubtful[1].test_images.numpy()
    (logits, probabilities), (before, others) = (run_file(each, images) for each in (calibrated, plain))
    assert logits.tobytes() == before.tobytes()
    temperature = open_verified(calibrated, ModelSettings(device="cpu")).metadata.temperature
    assert temperature == pytest.approx(TRUE_TEMPERATURE, rel=0.15)
    assert np.abs(probabilities - softmax(logits / np.float32(temperature))).max() < 1e-6
    assert np.abs(others - softmax(logits)).max() < 1e-6
    entry = json.loads((calibrated / "manifest.json").read_text())["calibration"]
    assert entry["temperature"] == temperature
    assert (entry["image_count"], entry["test"]["image_count"]) == (500, 200)
    assert entry["error_before"] > 0.2
    assert entry["error_after"] < 0.08
    assert entry["test"]["error_after"] < entry["test"]["error_before"] / 2
    assert "calibration" not in json.loads((plain / "manifest.json").read_text())
    assert open_verified(plain, ModelSettings(device="cpu")).metadata.temperature == 1.0
    assert (
        "temperature"
        not in ModelMetadata.from_props(Session((plain / "model.onnx").read_bytes()).props).to_properties()
    )


def test_export_prints_the_temperature_and_both_errors() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    Report(console).calibrated(Calibration(1.5, "validation images of x", 500, 0.25, 0.03))
    Report(console).calibrated(Calibration(1.0, "images", 9, 0.25, 0.25, "9 images are too few"))
    printed = console.export_text()
    assert (
        "temperature 1.5: expected calibration error 25.00% before and 3.00% after, on 500 valid" in printed
    )
    assert "the temperature stays 1: 9 images are too few" in printed


def test_the_same_checkpoint_gives_the_same_bytes(export) -> None:
    assert (export() / "model.onnx").read_bytes() == (export("again") / "model.onnx").read_bytes()


def test_fp16_keeps_the_division_in_float32(export, doubtful) -> None:
    version = export("half", precision="fp16", batch_sizes=(1,), max_accuracy_drop=100)
    assert read_artifact(version).manifest["precision"] == "fp16"
    temperature = open_verified(version, ModelSettings(device="cpu")).metadata.temperature
    assert temperature > 2
    logits, probabilities = run_file(version, doubtful[1].test_images.numpy()[:50])
    wrong, _ = softmax_errors(logits, probabilities, temperature)
    assert not wrong.any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("1.5", r"not the softmax of their logits / 1.5 over the classes", id="another"),
        pytest.param("2.99", r"not the softmax of their logits / 2.99 over the classes", id="a near one"),
        pytest.param("1000", "temperature: Input should be less than or equal to 20", id="too high"),
        pytest.param("0", "temperature: Input should be greater than or equal to 0.05", id="zero"),
        pytest.param("NaN", "temperature", id="not a number"),
        pytest.param('"3"', "temperature", id="text"),
    ],
)
def test_a_temperature_that_is_not_the_graphs_is_refused(
    export, tmp_path: Path, text: str, message: str
) -> None:
    """With hashes that fit; the twin of all that is served."""
    version = tmp_path / "copy" / "1"
    shutil.copytree(export(), version)
    change_metadata(version, temperature=text)
    mend_hashes(version)
    with pytest.raises(ArtifactError, match=message):
        open_verified(version, ModelSettings(device="cpu"))


def test_a_calibrated_file_keeps_its_temperature_when_exported_again(export, tmp_path: Path) -> None:
    version = export()
    export_model(ExportConfig(source=version / "model.onnx", repository=tmp_path / "again", name="m"))
    before, after = (
        open_verified(each, ModelSettings(device="cpu")).metadata.temperature
        for each in (version, tmp_path / "again" / "m" / "1")
    )
    assert before == after != 1


@pytest.mark.parametrize("temperature", [0.05, 0.7, 20.0])
def test_probabilities_are_proven_at_any_temperature(temperature: float) -> None:
    """In float32 as the graph divides; logits up to 1,000."""
    logits = (np.random.default_rng(2).random((200, 50)) * 2000 - 1000).astype(np.float32)
    exact = softmax(logits / np.float32(temperature)).astype(np.float32)
    assert not softmax_errors(logits, exact, temperature)[0].any()
    assert softmax_errors(logits / 400, exact, temperature)[0].all()
