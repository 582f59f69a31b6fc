"""README.md of a version: made from the manifest, hashed, and the same for the same inputs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from foldserve.artifact.format import Golden, ModelMetadata, read_artifact
from foldserve.artifact.model_card import class_accuracies, model_card
from foldserve.artifact.writer import publish_artifact
from foldserve.errors import ArtifactError
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.verified_model import open_verified
from foldserve.serving.repository.scanner import scan
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILES = {"model.onnx": {"sha256": "ab" * 32, "bytes": 1234}}
FULL = {
    "files": FILES,
    "precision": "fp32",
    "license": "Apache-2.0",
    "purpose": "Tells clothes apart.",
    "accuracy": {"images": "test images of clothes", "image_count": 10_000, "before": 0.92, "after": 0.921},
    "classes": class_accuracies(["T-shirt|top", "<b>Bag</b>"], [900, 0], [450, 0]),
    "calibration": {
        "temperature": 1.25,
        "images": "validation images of clothes",
        "image_count": 5000,
        "error_before": 0.043,
        "error_after": 0.009,
        "reason": "",
        "test": {"image_count": 10_000, "error_before": 0.04, "error_after": 0.01},
    },
    "golden": {"count": 256, "source": "test images of clothes"},
    "tools": {"torch": "2.13.0"},
}


def facts(temperature: float = 1.25, **provenance: str) -> ModelMetadata:
    network = TinyNetwork()
    return ModelMetadata(
        ("T-shirt|top", "<b>Bag</b>"), (0.25,), (0.5,), network.image, provenance, temperature=temperature
    )


def test_the_card_says_what_the_manifest_knows() -> None:
    card = model_card(FULL, facts(architecture="lenet", dataset="clothes"))
    for text in (
        'license: "Apache-2.0"\n',
        "Tells clothes apart.",
        "Network: lenet, precision fp32",
        "Trained on: clothes.",
        "256 golden pairs from test images of clothes",
        "92.10% on 10,000 test images of clothes",
        "| T-shirt\\|top | 900 | 50.0% |",
        "| &lt;b>Bag&lt;/b> | 0 | - |",
        "softmax(logits / 1.25)",
        "error 4.30% before, 0.90% after. On the 10,000 test images: 4.00% before, 1.00% after.",
        "uint8 [N, 1, 8, 8], grey",
        "mean [0.25] and std [0.5]",
        "foldserve predict models/NAME",
        f"| `model.onnx` | 1,234 | `{'ab' * 32}` |",
        "torch 2.13.0",
    ):
        assert text in card, text
    assert card == model_card(json.loads(json.dumps(FULL)), facts(architecture="lenet", dataset="clothes"))


def test_what_is_not_known_is_said() -> None:
    card = model_card({"files": FILES}, facts(1.0))
    assert 'license: "unknown"' in card
    assert "## Licence\n\nnot stated" in card
    assert "Not measured: no images with labels were given" in card
    assert "Not calibrated: a probability may be further" in card
    unfitted = {"calibration": FULL["calibration"] | {"reason": "9 images are too few"}}  # type: ignore[operator]
    assert "Not calibrated: 9 images are too few." in model_card({"files": FILES, **unfitted}, facts(1.0))


@pytest.mark.parametrize("text", ["a\n# Heading", "\u202eabc", "x\ud800"])
def test_untrusted_text_stays_on_its_line(text: str) -> None:
    card = model_card(FULL | {"purpose": text, "license": text}, facts())
    assert "\n# Heading" not in card
    card.encode()
    assert "\u202e" not in card


def publish(folder: Path, **changes: Any) -> Path:
    network = TinyNetwork()
    plain = read_artifact(network.publish(folder / "plain"))
    content: Mapping[str, Any] = {"precision": "fp32", **changes}
    golden: Golden = plain.golden
    return publish_artifact(
        folder / "m", model=plain.model, golden=golden, manifest=content, metadata=network.metadata
    )


def test_the_card_is_hashed_and_the_same_for_the_same_inputs(tmp_path: Path) -> None:
    first, second = publish(tmp_path, license="MIT"), publish(tmp_path, license="MIT")
    assert (first / "README.md").read_bytes() == (second / "README.md").read_bytes()
    artifact = read_artifact(first)
    assert set(artifact.manifest["files"]) == {"model.onnx", "golden.npz", "README.md"}
    assert artifact.model_sha256 in (first / "README.md").read_text()
    assert open_verified(first, ModelSettings(device="cpu")).golden_count == 32


@pytest.mark.parametrize("damage", ["changed", "missing", "huge"])
def test_cards_that_are_not_the_exported_ones_are_refused(tmp_path: Path, damage: str) -> None:
    version = publish(tmp_path)
    card = version / "README.md"
    if damage == "changed":
        card.write_bytes(card.read_bytes() + b" ")
    elif damage == "huge":
        card.write_bytes(bytes(2**20 + 1))
    else:
        card.unlink()
    with pytest.raises(ArtifactError, match=r"README\.md (is not the file|is missing|has \d+ bytes)"):
        read_artifact(version)


def test_versions_without_a_card_load_as_before(tmp_path: Path) -> None:
    version = TinyNetwork().publish(tmp_path / "m")
    assert not (version / "README.md").exists()
    (version / "README.md").write_text("the user's own notes, which no manifest names")
    assert open_verified(version, ModelSettings(device="cpu")).golden_count == 32


def test_the_server_notices_a_changed_card_and_needs_more_than_a_card(tmp_path: Path) -> None:
    version = publish(tmp_path)
    before = scan(tmp_path)["m"].versions[1]
    (version / "README.md").write_text("changed")
    assert scan(tmp_path)["m"].versions[1] != before
    shutil.copytree(version, tmp_path / "copy" / "1")
    assert list(scan(tmp_path)["copy"].versions) == [1]
