"""The preprocessing vectors for clients are what our preparation makes of the images."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from foldserve.artifact.format import ModelMetadata
from foldserve.imaging import ImageSpec, prepare_image
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FOLDER = ROOT / "examples" / "preprocessing"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
VECTORS = [pytest.param(vector, id=vector["tensor"]) for vector in MANIFEST["vectors"]]
_LARGEST_BYTES = 500_000


@cache
def spec_of(rule: str) -> ImageSpec:
    """The rule as a client reads it: from a model's metadata."""
    found = MANIFEST["rules"][rule]
    numbers = json.dumps([1.0] * len(found["channel_order"]))
    properties = {
        "schema": "1",
        "labels": '["a", "b"]',
        "mean": numbers,
        "std": numbers,
        "channel_order": found["channel_order"],
        "resize": json.dumps(found["resize"]),
    }
    return ModelMetadata.from_properties(properties).image


def tensor_of(vector: dict[str, Any]) -> NDArray[np.uint8]:
    content = (FOLDER / vector["tensor"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == vector["sha256"]
    return np.frombuffer(content, np.uint8).reshape(vector["shape"])


def image_of(vector: dict[str, Any]) -> bytes:
    content = (FOLDER / vector["image"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == vector["image_sha256"]
    return content


@pytest.mark.parametrize("vector", VECTORS)
def test_tensor_is_what_our_preparation_makes(vector: dict[str, Any]) -> None:
    assert np.array_equal(prepare_image(image_of(vector), spec_of(vector["rule"])), tensor_of(vector))


def test_vectors_tell_wrong_preparations_apart() -> None:
    """A client that ignores orientations, or decodes JPEG in full, is found out."""
    tensors = {vector["tensor"]: tensor_of(vector) for vector in MANIFEST["vectors"]}
    turned = [tensors[f"tensors/orientation_{number}.jpg.colour.bin"] for number in range(1, 9)]
    # All stored images are the same: only the turn differs.
    assert len({tensor.tobytes() for tensor in turned}) == 8
    for name in ("large.jpg", "large_odd.jpg", "medium.jpg"):
        spec = spec_of("colour")
        full = ImageSpec(spec.channel_order, spec.height, spec.width, spec.resize_shorter_side)
        content = (FOLDER / "images" / name).read_bytes()
        assert not np.array_equal(prepare_image(content, full), tensors[f"tensors/{name}.colour.bin"])


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(FOLDER / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_rule_in_plain_pillow_agrees(tmp_path: Path) -> None:
    done = run("prepare.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(VECTORS)} of {len(VECTORS)} tensors are equal\n"

    shutil.copytree(FOLDER, tmp_path / "changed")
    changed = tmp_path / "changed" / MANIFEST["vectors"][0]["tensor"]
    content = bytearray(changed.read_bytes())
    content[5] ^= 1
    changed.write_bytes(content)
    done = run("prepare.py", tmp_path / "changed")
    assert done.returncode == 1
    assert done.stderr.startswith(MANIFEST["vectors"][0]["tensor"])


def test_the_script_makes_the_same_vectors(tmp_path: Path) -> None:
    """Up to the bytes of the images, which depend on the versions of zlib, libjpeg and libwebp."""
    done = run("make_vectors.py", tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "manifest.json").read_text())
    assert made["rules"] == MANIFEST["rules"]
    keys = ("image", "about", "lossless", "rule", "tensor", "shape")
    for ours, theirs in zip(made["vectors"], MANIFEST["vectors"], strict=True):
        assert [ours[key] for key in keys] == [theirs[key] for key in keys]
        if ours["lossless"]:
            assert ours["sha256"] == theirs["sha256"]


def test_the_folder_is_small_and_holds_nothing_else() -> None:
    files = {path for part in ("images", "tensors") for path in (FOLDER / part).iterdir()}
    named = {FOLDER / vector[part] for vector in MANIFEST["vectors"] for part in ("image", "tensor")}
    assert files == named
    assert sum(path.stat().st_size for path in files) < _LARGEST_BYTES
