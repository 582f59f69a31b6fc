"""`foldserve classify`: image files -> the server's top labels, as a table a person reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imaging import ImageError, ImageSpec, prepare_image
from serving.artifact import PROBABILITIES
from serving.classify import top_labels
from serving.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from serving.config import ClassifyConfig

# Few enough for gRPC's usual limit of 4 MiB at 224x224 RGB (147 KiB an image).
_IMAGES_A_REQUEST = 16


def classify(config: ClassifyConfig) -> int:
    """Print each image's likeliest labels, and return 0.

    Raises:
        ImageError: a file is no image, or cannot be read; the message names it.
        ServingError: no server answers, or it cannot answer this.
    """
    encoded = [_read(path) for path in config.images]
    with Client(config.server, timeout_s=config.timeout_s) as client:
        model = client.describe(config.model, config.model_version)
        images = [
            _prepare(path, content, model.metadata.image)
            for path, content in zip(config.images, encoded, strict=True)
        ]
        probabilities = np.concatenate(
            [
                # The version described: an update halfway must not mix two models, or labels with others'
                # classes.
                client.infer(model.name, np.stack(chunk), model.version)[PROBABILITIES]
                for chunk in _chunks(images)
            ]
        )
    width = max(len(str(path)) for path in config.images)
    for path, row in zip(config.images, probabilities, strict=True):
        best = top_labels(row, model.metadata.labels, config.top_k)
        print(f"{path!s:<{width}}  {'  '.join(f'{label} {probability:.1%}' for label, probability in best)}")
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _prepare(path: Path, encoded: bytes, spec: ImageSpec) -> NDArray[np.uint8]:
    try:
        return prepare_image(encoded, spec)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _chunks(images: Sequence[NDArray[np.uint8]]) -> Iterator[Sequence[NDArray[np.uint8]]]:
    for start in range(0, len(images), _IMAGES_A_REQUEST):
        yield images[start : start + _IMAGES_A_REQUEST]
