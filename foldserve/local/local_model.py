"""Runs a published version in this process: proven first, fed by the one rule, with a server's answers.

The session and its threads are those that `foldserve serve` would choose, so the outputs are the same bits.
Images are read and decoded in as many threads as there are CPUs, while the session runs others.
"""

from __future__ import annotations

import math
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from foldserve.artifact.format import MANIFEST_FILE, MODEL_FILE
from foldserve.artifact.promotion import default_version, read_promotions
from foldserve.artifact.versions import is_version, list_versions
from foldserve.errors import ArtifactError, ImageError, ModelOutputError
from foldserve.imaging import prepare_image
from foldserve.local.answers import Answered, Predictions
from foldserve.ordered import in_chunks, run_in_order
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.session import CPU_PROVIDER, require_device
from foldserve.runtime.time_limit import TimeLimit
from foldserve.runtime.verified_model import VerifiedModel, open_verified
from foldserve.tables.items import Item
from foldserve.text import escaped

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from foldserve.artifact.format import ModelMetadata
    from foldserve.imaging import ImageSpec
    from foldserve.runtime.options import Device

# Prepared pixels of one batch; fewer images of a large network share one.
_BATCH_BYTES = 64 * 1024 * 1024
# A thread prepares several batches of small images before it runs them: decoding and running evict each other
# from the caches, which costs LeNet a fifth of its images/s if they alternate at every batch.
_BATCHES_PER_TURN = 8
_TURN_BYTES = 4 * 1024 * 1024


class LocalModel:
    """A model version in this process. Methods may be called from any thread.

    It can be pickled, as workers of Ray or Dask need it: the path travels, and the version is opened and
    proven again on the other side, where its hash must be the same. Use it as a context manager, or call
    `close`, to free its memory early.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: Device = "auto",
        batch_size: int = 32,
        load_timeout_s: float = 300.0,
    ) -> None:
        """Check the hashes of the version's files and replay its golden pairs on the device.

        Args:
            path: the folder of a version, or of a model, whose promoted version is taken, else the newest.
            device: "cuda" runs on the GPU or raises; "auto" uses CUDA if it works, else the CPU.
            batch_size: most images in one execution.
            load_timeout_s: longest time to read and verify the version, in seconds.

        Raises:
            ArtifactError: there is no version, or it does not prove itself; the message has the reason.
            DeviceError: the device cannot run the model.
            LoadTimeoutError: it took too long.
        """
        require_device(device)
        self.path = find_version(Path(path))
        self._options = {"device": device, "batch_size": batch_size, "load_timeout_s": load_timeout_s}
        settings = ModelSettings(device=device, max_batch_size=batch_size)
        opened = partial(_open, self.path, settings)
        self._verified: VerifiedModel | None = TimeLimit(load_timeout_s).run(str(self.path), opened)
        self._batch_size = batch_size
        is_on_cpu = self._opened.session.provider == CPU_PROVIDER
        executions = max(1, usable_cpus() // self._opened.threads) if is_on_cpu else 1
        self._may_run = threading.Semaphore(executions)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the model's memory."""
        self.close()

    def __repr__(self) -> str:
        """Return the call that opens it."""
        return f"LocalModel({str(self.path)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the path and the hash, not the weights."""
        return _reopen, (str(self.path), self._options, self.hash)

    def close(self) -> None:
        """Free the model's memory; later calls fail."""
        self._verified = None

    @property
    def name(self) -> str:
        """The model's name, which is its folder's."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """The version's number, which is its folder's name."""
        return self.path.name

    @property
    def hash(self) -> str:
        """SHA-256 of ``model.onnx``, in hexadecimal."""
        return self._opened.sha256

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the K classes, by index."""
        return self._opened.metadata.labels

    @property
    def metadata(self) -> ModelMetadata:
        """What the file says about itself: labels, image preparation, provenance."""
        return self._opened.metadata

    @property
    def verified(self) -> VerifiedModel:
        """The session and the measurements of its proof."""
        return self._opened

    def predict(self, images: NDArray[np.uint8] | Sequence[str | os.PathLike[str] | bytes]) -> Predictions:
        """Return the outputs for ``images``.

        Args:
            images: image files (paths or contents), prepared by the rule that training's evaluation used; or
                prepared pixels uint8 [N, C, H, W].

        Raises:
            ImageError: an image cannot be read, or the pixels have another shape; the message says which.
            ModelOutputError: the model gave NaN or infinity.
        """
        if isinstance(images, np.ndarray):
            return self._predict_pixels(images)
        items = [
            Item(str(index), image if isinstance(image, bytes) else Path(image))
            for index, image in enumerate(images)
        ]
        done: list[Predictions] = []
        for answered in answer_all([self], items):
            for item, error in zip(answered.items, answered.errors, strict=True):
                if error:
                    raise ImageError(f"image {item.name}: {error}")
            done.extend(answered.predictions)
        return self._joined(done)

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        """Return the outputs for prepared pixels uint8 [N, C, H, W], on this thread.

        Waits while the CPUs run others' batches.
        """
        runner, size = self._opened.runner, self._images_per_batch
        outputs = []
        for start in range(0, len(images), size):
            with self._may_run:
                outputs.append(runner(images[start : start + size]))
        return self._joined([Predictions(self.labels, *each) for each in outputs])

    @property
    def images_per_turn(self) -> int:
        """How many images a thread prepares before it runs them, in one batch or several."""
        image_bytes = math.prod(self.metadata.image.shape)
        batch = self._images_per_batch
        return batch * max(1, min(_BATCHES_PER_TURN, _TURN_BYTES // (batch * image_bytes)))

    @property
    def _images_per_batch(self) -> int:
        return max(1, min(self._batch_size, _BATCH_BYTES // math.prod(self.metadata.image.shape)))

    @property
    def _opened(self) -> VerifiedModel:
        if self._verified is None:
            raise ValueError(f"{self!r} is closed")
        return self._verified

    def _predict_pixels(self, images: NDArray[np.uint8]) -> Predictions:
        shape = self.metadata.image.shape
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise ImageError(
                f"the pixels are {images.dtype} {list(images.shape)}; expected uint8 "
                f"[N, {', '.join(map(str, shape))}]"
            )
        size = self._images_per_batch
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        return self._joined(list(run_in_order(batches, self.run, usable_cpus())))

    def _joined(self, parts: Sequence[Predictions]) -> Predictions:
        if len(parts) == 1:
            return parts[0]
        none = np.empty((0, len(self.labels)), np.float32)
        return Predictions(
            self.labels,
            np.concatenate([none, *(part.logits for part in parts)]),
            np.concatenate([none, *(part.probabilities for part in parts)]),
        )


def answer_all(models: Sequence[LocalModel], items: Iterable[Item]) -> Iterator[Answered]:
    """Yield the items in order, some at a time, with the outputs of each model; nothing else is held.

    An image that cannot be read, or for which a model gives no number, becomes an error in its place. Models
    with the same input see the same pixels; else each image is prepared for each of them.
    """
    size = min(model.images_per_turn for model in models)
    # On two CPUs, a thread beside them decodes while a large network's session uses both.
    return run_in_order(
        in_chunks(items, size), partial(_answer, models), usable_cpus() + _extra_threads(models)
    )


def find_version(path: Path) -> Path:
    """Return the resolved folder of a version: ``path`` itself, or the promoted or else newest one in it.

    Raises:
        ArtifactError: there is none.
    """
    resolved = path.resolve()
    shown = escaped(str(path))
    if not resolved.is_dir():
        what = "is not a folder" if resolved.exists() else "does not exist"
        raise ArtifactError(f"{shown} {what}; expected the folder of a model or of a version")
    if any((resolved / name).exists() for name in (MANIFEST_FILE, MODEL_FILE)):
        return resolved
    versions = list_versions(resolved)
    if versions:
        return resolved / str(default_version(versions, read_promotions(resolved)))
    models = sorted(entry.name for entry in resolved.iterdir() if entry.is_dir() and _has_versions(entry))
    hint = f"; it is a repository: give one of its models, such as {path / models[0]}" if models else ""
    raise ArtifactError(f"{shown} holds no version{hint}")


def _has_versions(folder: Path) -> bool:
    try:
        return any(is_version(entry.name) for entry in folder.iterdir())
    except OSError:
        return False


def _open(folder: Path, settings: ModelSettings, stop: object) -> VerifiedModel:
    return open_verified(folder, settings, stop=stop)  # type: ignore[arg-type]


def _reopen(path: str, options: dict[str, object], sha256: str) -> LocalModel:
    model = LocalModel(path, **options)  # type: ignore[arg-type]
    if model.hash != sha256:
        raise ArtifactError(
            f"{path} has changed since it was pickled: its SHA-256 was {sha256} and is {model.hash}"
        )
    return model


def _extra_threads(models: Sequence[LocalModel]) -> int:
    return int(any(model.verified.threads > 1 for model in models))


def _answer(models: Sequence[LocalModel], items: Sequence[Item]) -> Answered:
    specs = list(dict.fromkeys(model.metadata.image for model in models))
    arrays = [(spec, np.empty((len(items), *spec.shape), np.uint8)) for spec in specs]
    errors, good = [""] * len(items), 0
    rows = [-1] * len(items)
    for place, item in enumerate(items):
        try:
            encoded = item.read()
            for spec, pixels in arrays:
                pixels[good] = prepare_image(encoded, spec)
        except ImageError as error:
            errors[place] = str(error)
        else:
            rows[place], good = good, good + 1
    images = {spec: pixels[:good] for spec, pixels in arrays}
    try:
        predictions = tuple(model.run(images[model.metadata.image]) for model in models)
    except ModelOutputError as error:
        if len(items) == 1:
            return _without_outputs(models, items, str(error))
        return _rejoined([_answer(models, [item]) for item in items])
    return Answered(items, errors, rows, images[specs[0]], predictions)


def _without_outputs(models: Sequence[LocalModel], items: Sequence[Item], error: str) -> Answered:
    spec: ImageSpec = models[0].metadata.image
    nothing = np.empty((0, *spec.shape), np.uint8)
    return Answered(items, [error], [-1], nothing, tuple(model.run(nothing) for model in models))


def _rejoined(parts: Sequence[Answered]) -> Answered:
    """Join answers of one item each."""
    rows, good = [], 0
    for part in parts:
        rows.append(good if part.rows[0] >= 0 else -1)
        good += part.rows[0] >= 0
    predictions = tuple(
        Predictions(
            each[0].names,
            np.concatenate([one.logits for one in each]),
            np.concatenate([one.probabilities for one in each]),
        )
        for each in zip(*(part.predictions for part in parts), strict=True)
    )
    return Answered(
        [part.items[0] for part in parts],
        [part.errors[0] for part in parts],
        rows,
        np.concatenate([part.images for part in parts]),
        predictions,
    )
