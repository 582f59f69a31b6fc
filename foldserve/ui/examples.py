"""Offers a version's golden images as examples, read from the model repository.

They are not on the wire: they may be private, and a server needs them only to verify the version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.format import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, read_manifest
from foldserve.artifact.npz import read_arrays
from foldserve.artifact.versions import is_version
from foldserve.errors import ArtifactError
from foldserve.files import file_fingerprint, read_regular_file
from foldserve.ui.heat_map import to_image, to_png

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.files import FileFingerprint
    from foldserve.serving.client.messages import Description

COUNT = 12
# Golden images of 256 colour pictures of 224 by 224 are 37 MiB.
_MAX_GOLDEN_BYTES = 256 * 1024 * 1024
_FILES_HELD = 8


@dataclass(frozen=True)
class Example:
    """One golden image: a PNG file of exactly the network's input size, and the class that it was given."""

    png: bytes
    index: int


def read_examples(repository: Path, model: Description) -> tuple[Example, ...]:
    """Return a few golden images of the version that the server described, of as many classes as there are.

    Raises:
        ArtifactError: the version's files are missing or malformed, or are not those that the server serves.
    """
    # Both names came over the wire; neither may lead out of the repository.
    if (
        not is_version(model.version)
        or model.name in ("", ".", "..")
        or "/" in model.name
        or "\0" in model.name
    ):
        raise ArtifactError("the server's name of the model is no folder of a repository")
    folder = repository / model.name / model.version
    return _read(
        folder,
        repository,
        model.sha256,
        file_fingerprint(folder / MANIFEST_FILE),
        file_fingerprint(folder / GOLDEN_FILE),
    )


@lru_cache(maxsize=_FILES_HELD)
def _read(
    folder: Path,
    repository: Path,
    sha256: str,
    *fingerprints: FileFingerprint | None,  # noqa: ARG001  # what is held is read again when they change
) -> tuple[Example, ...]:
    """Read the examples of a version whose model file has the hash ``sha256``."""
    _, facts = read_manifest(folder, repository)
    if facts.files[MODEL_FILE].sha256 != sha256:
        raise ArtifactError(f"{folder} is not the version that the server serves: their hashes differ")
    content = read_regular_file(folder / GOLDEN_FILE, repository, _MAX_GOLDEN_BYTES)
    try:
        arrays = read_arrays(content, ["images", "reference_logits"], _MAX_GOLDEN_BYTES)
        return _choose(arrays["images"], arrays["reference_logits"])
    except Exception as error:  # zipfile, zlib, numpy and KeyError all mean the same thing here
        raise ArtifactError(f"{GOLDEN_FILE} cannot be read: {error}") from error


def _choose(images: NDArray[Any], logits: NDArray[Any]) -> tuple[Example, ...]:
    """Return the first image of each class in turn, then the second of each, until there are enough."""
    if images.dtype != np.uint8 or images.ndim != 4 or logits.ndim != 2 or len(images) != len(logits):
        raise ValueError("its arrays do not fit together")
    classes = logits.argmax(axis=1)
    by_class = np.argsort(classes, kind="stable")
    in_order = classes[by_class]
    # The place of each image among those of its class.
    turn = np.empty_like(by_class)
    turn[by_class] = np.arange(len(classes)) - np.searchsorted(in_order, in_order)
    order = np.lexsort((classes, turn))[:COUNT]
    return tuple(Example(to_png(to_image(images[place])), int(classes[place])) for place in order)
