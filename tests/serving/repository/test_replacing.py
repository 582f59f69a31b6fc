"""Tests replacing a version, in process: running requests are answered, and memory is freed."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import weakref
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.server_state import Lifecycle
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.requests import Reply, TensorRequest
from tests.support.artifacts import TinyNetwork
from tests.support.repository_changes import eventually
from tests.support.server_process import infer_request, outputs_of

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.index import ModelIndex

SETTINGS = ModelSettings(device="cpu", intra_op_threads=1)
OLD, NEW = TinyNetwork(seed=1), TinyNetwork(seed=2)
IMAGES = OLD.random_images(2)


class FoundTooEarly:
    """Acts as the index for a request that found a model just before it was replaced."""

    def __init__(self, index: ModelIndex, found: ServedModel) -> None:
        self._index = index
        self._found = [found]

    def find(self, name: str, version: str) -> ServedModel:
        return self._found.pop() if self._found else self._index.find(name, version)


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    OLD.publish(tmp_path / "tiny")
    (tmp_path / "tiny" / "model.toml").write_text("version_policy = { latest = 1 }\n")
    opened = ModelRepository(tmp_path, SETTINGS)
    opened.load_all()
    return opened


def ask(repository: ModelRepository, found: ServedModel, version: str = "") -> Reply:
    """Return the reply to a request that found ``found``."""
    stale = cast("ModelIndex", FoundTooEarly(repository.index, found))
    servicer = InferenceService(stale, Lifecycle(), max_decoding_bytes=1000, max_image_pixels=1000)
    replies: list[Reply] = []
    call = TensorRequest(message=infer_request(IMAGES, model_version=version))
    servicer.submit([call], lambda _, reply: replies.append(reply))
    eventually(lambda: replies, "the call is answered")
    servicer.close()
    return replies[0]


def replace_model(repository: ModelRepository, folder: Path, network: TinyNetwork = NEW) -> ServedModel:
    """Publish and load another version; return the one before, once it is closed."""
    before = repository.index.find("tiny", "")
    network.publish(folder / "tiny")
    repository.load("tiny")
    eventually(lambda: before not in repository._reconciler._unloader._draining, "the old one is drained")
    return before


def test_request_for_a_replaced_model_is_answered_by_the_new_one(
    repository: ModelRepository, tmp_path: Path
) -> None:
    reply = ask(repository, replace_model(repository, tmp_path))
    assert isinstance(reply, bytes)
    response = pb.ModelInferResponse.FromString(reply)
    assert response.model_version == "2"
    assert np.abs(outputs_of(response)["logits"] - NEW.logits(IMAGES)).max() < 1e-5
    repository.close(grace_s=5)


def test_request_passes_to_a_version_that_decodes_pictures_otherwise(
    repository: ModelRepository, tmp_path: Path
) -> None:
    image = dataclasses.replace(OLD.image, decode="scaled")
    reply = ask(repository, replace_model(repository, tmp_path, TinyNetwork(seed=2, image=image)))
    assert isinstance(reply, bytes)
    repository.close(grace_s=5)


def test_request_for_an_unloaded_version_is_refused_with_the_reason(
    repository: ModelRepository, tmp_path: Path
) -> None:
    before = replace_model(repository, tmp_path)
    reply = ask(repository, before, "1")
    assert isinstance(reply, UnavailableError)
    assert "version_policy is latest 1" in str(reply)
    shutil.rmtree(tmp_path / "tiny" / "1")
    repository.load("tiny")
    assert isinstance(ask(repository, before, "1"), NotFoundError)
    repository.close(grace_s=5)


def test_request_whose_images_no_longer_fit_is_refused(repository: ModelRepository, tmp_path: Path) -> None:
    """Its rows were read for another input; a second attempt tells the caller what fits."""
    from foldserve.imaging import ImageSpec

    wider = TinyNetwork(seed=3, image=ImageSpec("L", 9, 9, 9))
    reply = ask(repository, replace_model(repository, tmp_path, wider))
    assert isinstance(reply, UnavailableError)
    repository.close(grace_s=5)


def test_request_after_close_is_refused_and_not_retried_for_ever(repository: ModelRepository) -> None:
    model = repository.index.find("tiny", "")
    repository.close(grace_s=5)
    assert isinstance(ask(repository, model), UnavailableError)


def test_replaced_model_is_freed_at_once(repository: ModelRepository, tmp_path: Path) -> None:
    """The garbage collector is off: it may not run for long, and ignores objects frozen at start-up."""
    session = weakref.ref(repository.index.find("tiny", "").verified.session)
    model = weakref.ref(repository.index.find("tiny", ""))
    gc.disable()
    try:
        NEW.publish(tmp_path / "tiny")
        repository.load("tiny")
        eventually(lambda: not repository._reconciler._unloader._draining, "the old one is drained")
        eventually(lambda: session() is None, "the draining thread, the last one, lets go of it")
        assert model() is None
    finally:
        gc.enable()
    repository.close(grace_s=5)


def test_version_that_is_briefly_missing_goes_on_serving(repository: ModelRepository, tmp_path: Path) -> None:
    """A folder missing at one scan is waited for; at the second it is gone."""
    (tmp_path / "tiny" / "1").rename(tmp_path / ".1")
    repository.refresh()
    assert repository.index.is_ready("tiny", "1")
    (tmp_path / ".1").rename(tmp_path / "tiny" / "1")
    repository.refresh()
    (tmp_path / "tiny" / "1").rename(tmp_path / ".1")
    repository.refresh()
    assert repository.index.is_ready("tiny", "1"), "missing for the first time again"
    repository.refresh()
    with pytest.raises(NotFoundError):
        repository.index.find("tiny", "")
    repository.close(grace_s=5)


def test_removed_version_that_the_policy_excludes_leaves_the_index(
    repository: ModelRepository, tmp_path: Path
) -> None:
    replace_model(repository, tmp_path)
    assert [entry.version for entry in repository.index.entries()] == [1, 2]
    shutil.rmtree(tmp_path / "tiny" / "1")
    repository.refresh()
    repository.refresh()
    assert [entry.version for entry in repository.index.entries()] == [2]
    repository.close(grace_s=5)


def test_removed_newest_version_is_replaced_by_an_older_one_without_a_gap(
    repository: ModelRepository, tmp_path: Path
) -> None:
    replace_model(repository, tmp_path)
    shutil.rmtree(tmp_path / "tiny" / "2")
    serving: list[list[int]] = []
    repository.index.subscribe(
        lambda: serving.append([model.version for model in repository.index.ready_models()])
    )
    repository.refresh()
    repository.refresh()
    assert serving[-1] == [1]
    assert [] not in serving
    repository.close(grace_s=5)


def test_touched_files_are_not_loaded_again(repository: ModelRepository, tmp_path: Path) -> None:
    model = repository.index.find("tiny", "")
    for path in (tmp_path / "tiny" / "1").iterdir():
        path.write_bytes(path.read_bytes())
    repository.refresh()
    assert repository.index.find("tiny", "") is model
    repository.close(grace_s=5)


def test_unchanged_repository_announces_no_changes(repository: ModelRepository) -> None:
    changes: list[None] = []
    repository.index.subscribe(lambda: changes.append(None))
    for _ in range(3):
        repository.refresh()
    assert changes == []
    repository.close(grace_s=5)
