"""Tests finding, loading and choosing versions, and the checks on opening one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from foldserve.artifact.format import Golden, read_artifact
from foldserve.artifact.promotion import Promotion, write_promotions
from foldserve.artifact.writer import publish_artifact
from foldserve.errors import ArtifactError
from foldserve.imaging import ImageSpec
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.verified_model import open_verified
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.repository.scanner import scan
from foldserve.serving.server_state import Lifecycle, ServerState
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.management import ManagementService
from foldserve.serving.services.requests import Reply, TensorRequest
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import infer_request

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.serving.model.loader import LoadOutcome

SETTINGS = ModelSettings(device="cpu", intra_op_threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TinyNetwork().publish(tmp_path / "tiny")
    TinyNetwork(seed=2).publish(tmp_path / "tiny")
    return tmp_path


def test_hidden_empty_and_misnamed_folders_are_not_versions(folder: Path) -> None:
    for name in (".hidden/1", "empty", "tiny/03", "tiny/latest", "tiny/-4", "tiny/.publishing-x", "tiny/٣"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text("models")
    (folder / "tiny" / "5").write_text("a file, not a folder")
    found = scan(folder)
    assert {name: list(model.versions) for name, model in found.items() if model.versions} == {"tiny": [1, 2]}


def test_log_says_which_version_answers_when_that_changes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="foldserve.serving.repository")

    def said() -> list[str]:
        return [message for message in caplog.messages if "answers requests that name none" in message]

    repository = ModelRepository(folder, SETTINGS)
    repository.load_all()
    assert said() == [], "nothing answered before"
    digest = read_artifact(folder / "tiny" / "1").model_sha256
    write_promotions(folder / "tiny", [Promotion.now(1, digest)])
    repository.load("tiny")
    repository.load("tiny")
    write_promotions(folder / "tiny", [])
    repository.load("tiny")
    assert said() == [
        "tiny: version 1 answers requests that name none (before: 2)",
        "tiny: version 2 answers requests that name none (before: 1)",
    ]
    repository.close(grace_s=5)


def test_path_that_is_not_a_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere cannot be read"):
        scan(tmp_path / "nowhere")


def test_newest_version_serves_after_loading_and_none_before(folder: Path) -> None:
    repository = ModelRepository(folder, SETTINGS)
    assert not repository.index.is_ready("tiny", "")
    with pytest.raises(UnavailableError, match="loading"):
        repository.index.find("tiny", "1")
    repository.load_all()
    assert repository.index.find("tiny", "").version == 2
    assert repository.index.find("tiny", "1").version == 1
    with pytest.raises(NotFoundError, match="no version '3'; it has 1, 2"):
        repository.index.find("tiny", "3")
    repository.close(grace_s=5)


def test_each_load_attempt_is_reported_once_with_its_outcome(folder: Path) -> None:
    (folder / "tiny" / "1" / "golden.npz").unlink()
    outcomes: list[LoadOutcome] = []
    repository = ModelRepository(folder, SETTINGS, outcomes.append)
    repository.load_all()
    assert [(outcome.name, outcome.version) for outcome in outcomes] == [("tiny", 2), ("tiny", 1)]
    assert outcomes[1].refusal == "golden.npz is missing from the version's folder"
    assert outcomes[0].refusal is None
    assert outcomes[0].seconds > 0
    repository.close(grace_s=5)


def test_model_unloaded_before_its_turn_is_not_loaded(folder: Path) -> None:
    TinyNetwork().publish(folder / "other")
    repository = ModelRepository(folder, SETTINGS)
    repository.unload("tiny")
    repository.load_all()
    assert [model.name for model in repository.index.ready_models()] == ["other"]
    repository.load("tiny")
    assert repository.index.is_ready("tiny", "")
    repository.close(grace_s=5)


def test_closed_repository_loads_nothing_more(folder: Path) -> None:
    repository = ModelRepository(folder, SETTINGS)
    repository.close(grace_s=0)
    repository.load_all()
    assert repository.index.ready_models() == []


def test_draining_service_refuses_new_requests_and_is_not_ready(folder: Path) -> None:
    repository = ModelRepository(folder, SETTINGS)
    repository.load_all()
    lifecycle = Lifecycle()
    servicer = InferenceService(repository.index, lifecycle, max_decoding_bytes=1000, max_image_pixels=1000)
    control = ManagementService(repository, lifecycle, model_control=True)
    assert not control.is_ready(), "start-up loading has not been declared over"
    lifecycle.enter(ServerState.READY)
    assert control.is_ready()
    lifecycle.enter(ServerState.DRAINING)
    replies: list[Reply] = []
    call = TensorRequest(message=infer_request(TinyNetwork().random_images(1)))
    servicer.submit([call], lambda _, reply: replies.append(reply))
    assert [str(reply) for reply in replies] == ["the server is draining; try again, or use another server"]
    assert not control.is_ready()
    assert not control.model_ready(pb.ModelReadyRequest(name="tiny")).ready
    repository.close(grace_s=5)


def test_label_count_must_equal_class_count(tmp_path: Path) -> None:
    network = TinyNetwork()
    network.labels = network.labels[:-1]
    with pytest.raises(ArtifactError, match=r"with 2 labels they must include logits FP32 \[-1, 2\]"):
        open_verified(network.publish(tmp_path / "tiny"), SETTINGS)


def test_golden_images_must_fit_the_model(tmp_path: Path) -> None:
    larger = TinyNetwork(image=ImageSpec("L", 9, 9, 9)).to_onnx()
    images = TinyNetwork().random_images(2)
    logits = TinyNetwork().logits(images)
    golden = Golden(images, logits, logits, 1e-3, 1e-3, synthetic=True)
    version = publish_artifact(tmp_path / "tiny", model=larger, golden=golden, manifest={})
    with pytest.raises(ArtifactError, match="the golden pairs are of another model"):
        open_verified(version, SETTINGS)
