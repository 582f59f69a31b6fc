"""A published network and pictures for it, shared by the tests of this room; they must not change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve.imaging import ImageSpec
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def network() -> TinyNetwork:
    return TinyNetwork(seed=3, image=ImageSpec("RGB", 6, 10, 12), class_count=7)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, network: TinyNetwork) -> Path:
    """`colour` has two versions with different weights."""
    folder = tmp_path_factory.mktemp("models")
    TinyNetwork(seed=8, image=network.image, class_count=7).publish(folder / "colour")
    network.publish(folder / "colour")
    return folder


@pytest.fixture(scope="session")
def model(repository: Path) -> Path:
    return repository / "colour"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, network: TinyNetwork) -> Path:
    """FOLDER/LABEL/*: 12 pictures of each of the 7 labels, larger than the input and of several shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label in network.labels:
        (folder / label).mkdir()
        for number in range(12):
            coarse = generator.integers(0, 256, (5, 4 + number % 5, 3), np.uint8)
            pixels = np.kron(coarse, np.ones((9, 11, 1), np.uint8))
            Image.fromarray(pixels).save(folder / label / f"{number:02}.{'png' if number % 2 else 'jpg'}")
    return folder
