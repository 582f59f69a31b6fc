"""A repository of small models and a server of it, for the tests of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from foldserve.imaging import ImageSpec
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# As people name things: a slash, HTML, other scripts.
LABELS = ("T-shirt/top", "<b>bag</b> & more", "Stövel 靴")


def named(seed: int, image: ImageSpec | None = None) -> TinyNetwork:
    """Return a network whose labels are LABELS."""
    network = TinyNetwork(seed, image)
    network.labels = LABELS
    return network


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a grey model, and a model in colour that crops."""
    folder = tmp_path_factory.mktemp("models")
    named(1).publish(folder / "grey")
    named(2).publish(folder / "grey")
    named(3, ImageSpec("RGB", 12, 10, 16)).publish(folder / "colour")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(repository, tmp_path_factory.mktemp("server")) as process:
        yield process
