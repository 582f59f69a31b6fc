"""What people do to a repository while it is served, and waiting for the server to have followed."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork
    from tests.support.server_process import ServerProcess

PATIENCE_S = 60.0  # generous: the test machine may be busy


def eventually(holds: Callable[[], object], what: str) -> None:
    """Wait until ``holds`` gives something true."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_s, f"never happened: {what}"
        time.sleep(0.05)


def states(server: ServerProcess, model: str) -> dict[str, tuple[str, str]]:
    """State and reason of each version of a model in the index."""
    index = server.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    return {entry.version: (entry.state, entry.reason) for entry in index if entry.name == model}


def serves(server: ServerProcess, model: str, version: str) -> bool:
    """Whether a version of a model is ready, and nothing is said against it."""
    return states(server, model).get(version) == ("READY", "")


def overwrite(version: Path, network: TinyNetwork, elsewhere: Path) -> str:
    """Put another network's files in the place of a version's, one after the other; return their hash."""
    other = network.publish(elsewhere)
    for name in ("golden.npz", "model.onnx", "manifest.json"):
        shutil.copy(other / name, version / name)
    return sha256_of(version)


def sha256_of(version: Path) -> str:
    """What a version's manifest says of its model."""
    from foldserve.artifact.format import read_artifact

    return read_artifact(version).model_sha256
