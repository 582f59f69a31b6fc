"""A server follows its repository: verified versions are served, and no change stops the old ones."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.endings import end_with
from tests.support.repository_changes import eventually, overwrite, serves, sha256_of, states
from tests.support.server_process import ServerProcess, infer_request, outputs_of, run_cli, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW = TinyNetwork(seed=1), TinyNetwork(seed=2)
IMAGES = OLD.random_images(3)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changing") / "models"
    OLD.publish(folder / "still")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests, each of which has a model of its own."""
    with ServerProcess(repository, tmp_path_factory.mktemp("server"), "--poll-s", "0.1") as process:
        yield process
        assert process.process.poll() is None, process.log
        assert np.abs(outputs_of(process.infer(IMAGES, "still"))["logits"] - OLD.logits(IMAGES)).max() < 1e-5


@pytest.fixture
def model(request: pytest.FixtureRequest, repository: Path, server: ServerProcess) -> str:
    """A model of the test's own name, with one version that serves."""
    name: str = request.node.name.removeprefix("test_")
    version = OLD.publish(repository / name)
    eventually(lambda: serves(server, name, version.name), "a new model is served")
    return name


def error_of(server: ServerProcess, model: str, network: TinyNetwork, version: str = "") -> float:
    """How far the answer is from a network's."""
    answer = server.infer(IMAGES, model, model_version=version)
    return float(np.abs(outputs_of(answer)["logits"] - network.logits(IMAGES)).max())


def is_healthy(server: ServerProcess, service: str) -> bool:
    status = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(service=service))
    return bool(status.status == health_pb2.HealthCheckResponse.SERVING)


def test_new_version_is_noticed(server: ServerProcess, repository: Path, model: str) -> None:
    NEW.publish(repository / model)
    eventually(lambda: serves(server, model, "2"), "the new version is served")
    assert error_of(server, model, NEW) < 1e-5
    assert error_of(server, model, OLD, version="1") < 1e-5
    eventually(lambda: is_healthy(server, model), "health knows the new model")


def test_removed_version_and_model_are_noticed(server: ServerProcess, repository: Path, model: str) -> None:
    NEW.publish(repository / model)
    eventually(lambda: serves(server, model, "2"), "the new version is served")
    shutil.rmtree(repository / model / "2")
    eventually(lambda: "2" not in states(server, model), "the version is gone")
    assert error_of(server, model, OLD) < 1e-5
    shutil.rmtree(repository / model)
    eventually(lambda: not states(server, model), "the model is gone")
    assert status_of(lambda: server.infer(IMAGES, model))[0] == grpc.StatusCode.NOT_FOUND
    eventually(lambda: not is_healthy(server, model), "health knows that it is gone")


@pytest.mark.parametrize("ending", ["negated", "over the images", "NaN", "wrong for three images"])
def test_version_with_wrong_probabilities_is_not_served(
    server: ServerProcess, repository: Path, tmp_path: Path, ending: str
) -> None:
    """Its logits are right, and its golden pairs are reproduced: beside what serves, and in its place."""
    name = f"wrong {ending}".replace(" ", "_")
    OLD.publish(repository / name)
    eventually(lambda: serves(server, name, "1"), "a new model is served")
    made = NEW.publish(tmp_path / "made")
    end_with(made, ending)
    made.rename(repository / name / "2")
    eventually(lambda: states(server, name).get("2", ("", ""))[0] == "UNAVAILABLE", "it is refused")
    assert "not the softmax of their logits" in states(server, name)["2"][1]
    for file in ("golden.npz", "model.onnx", "manifest.json"):
        shutil.copy(repository / name / "2" / file, repository / name / "1" / file)
    eventually(lambda: "not the softmax" in states(server, name)["1"][1], "its replacement is refused too")
    assert error_of(server, name, OLD) < 1e-5


def test_half_copied_version_waits_until_it_is_complete(
    server: ServerProcess, repository: Path, model: str, tmp_path: Path
) -> None:
    source, target = NEW.publish(tmp_path / "new"), repository / model / "2"
    target.mkdir()
    shutil.copy(source / "manifest.json", target)
    (target / "model.onnx").write_bytes((source / "model.onnx").read_bytes()[:100])
    eventually(
        lambda: states(server, model).get("2", ("", ""))[0] == "LOADING", "it is seen to be incomplete"
    )
    assert states(server, model)["2"][1].startswith(
        "incomplete: model.onnx has 100 bytes; manifest.json says"
    )
    assert error_of(server, model, OLD) < 1e-5
    eventually(lambda: states(server, model)["2"][0] == "UNAVAILABLE", "what stays incomplete is refused")
    assert "SHA-256" in states(server, model)["2"][1]
    shutil.copy(source / "model.onnx", target)
    eventually(lambda: "golden.npz is missing" in states(server, model)["2"][1], "it is looked at again")
    assert error_of(server, model, OLD) < 1e-5
    shutil.copy(source / "golden.npz", target)
    eventually(lambda: serves(server, model, "2"), "the whole version is served")
    assert error_of(server, model, NEW) < 1e-5


def test_version_changed_in_place_is_replaced(
    server: ServerProcess, repository: Path, model: str, tmp_path: Path
) -> None:
    digest = overwrite(repository / model / "1", NEW, tmp_path / "new")

    def answered_by() -> str:
        return str(server.infer(IMAGES, model).parameters["model_sha256"].string_param)

    eventually(lambda: answered_by() == digest, "the new files answer")
    assert error_of(server, model, NEW) < 1e-5
    for name in ("model.onnx", "golden.npz", "manifest.json"):  # other times, and clocks that jumped
        os.utime(repository / model / "1" / name, (4e9, 4e9))
    digest = overwrite(repository / model / "1", OLD, tmp_path / "old")
    for name in ("model.onnx", "golden.npz", "manifest.json"):
        os.utime(repository / model / "1" / name, (0, 0))
    eventually(lambda: answered_by() == digest, "files from 1970 replace those from 2096")
    assert error_of(server, model, OLD) < 1e-5


def test_failed_update_leaves_the_old_version_serving(
    server: ServerProcess, repository: Path, model: str
) -> None:
    before = sha256_of(repository / model / "1")
    golden = NEW.publish(repository / ".others" / model) / "golden.npz"
    manifest = repository / model / "1" / "manifest.json"
    shutil.copy(golden, repository / model / "1")
    manifest.write_text(manifest.read_text().replace("schema_version", "schema_verse"))
    eventually(lambda: "malformed" in states(server, model)["1"][1], "the fault is seen")
    assert states(server, model)["1"][0] == "READY"
    answer = server.infer(IMAGES, model)
    assert answer.parameters["model_sha256"].string_param == before
    listed = run_cli("models", "list", "--server", server.address).stdout
    line = next(line for line in listed.splitlines() if line.startswith(model))
    assert "READY" in line
    assert "newer files are not served: " in line


def test_settings_file_is_followed(server: ServerProcess, repository: Path, model: str) -> None:
    def config() -> pb.ModelConfig:
        return server.stub.ModelConfig(pb.ModelConfigRequest(name=model)).config

    NEW.publish(repository / model)
    eventually(lambda: serves(server, model, "2"), "the new version is served")
    settings = repository / model / "model.toml"
    settings.write_text("version_policy = { latest = 1 }\nmax_batch_size = 4\ninstances = 2\n")
    eventually(lambda: config().max_batch_size == 4, "the new settings hold")
    eventually(lambda: states(server, model)["1"][0] == "UNAVAILABLE", "the older version is unloaded")
    assert states(server, model)["1"][1] == "not served: version_policy is latest 1"
    assert config().instance_group[0].count == 2
    assert error_of(server, model, NEW) < 1e-5
    settings.write_text("version_policy = { specific = [1] }\n\n[cuda]\nuse_tf32 = false\n")
    eventually(lambda: serves(server, model, "1"), "the version asked for is served")
    eventually(lambda: states(server, model)["2"][0] == "UNAVAILABLE", "the other is unloaded")
    assert config().max_batch_size == 32
    settings.unlink()
    eventually(lambda: serves(server, model, "2"), "without a file all versions are served")
    assert serves(server, model, "1")


def test_bad_settings_are_refused_by_line_and_key(
    server: ServerProcess, repository: Path, model: str
) -> None:
    settings = repository / model / "model.toml"
    settings.write_text("max_batch_size = 8\n# fewer\nmax_bach_size = 4\n")
    expected = "model.toml line 3: max_bach_size: there is no such key; did you mean max_batch_size?"
    eventually(lambda: states(server, model)["1"] == ("READY", expected), "the fault is seen")
    assert error_of(server, model, OLD) < 1e-5
    assert server.log.count(expected) == 1, "said once, not at every look"
    settings.write_text("max_batch_size = 8\n")
    eventually(lambda: serves(server, model, "1"), "the fault is gone")
    assert server.stub.ModelConfig(pb.ModelConfigRequest(name=model)).config.max_batch_size == 8


def test_refused_update_does_not_count_as_latest(server: ServerProcess, repository: Path, model: str) -> None:
    (repository / model / "model.toml").write_text("version_policy = { latest = 1 }\n")
    bad = NEW.publish(repository / ".bad" / model)
    (bad / "golden.npz").unlink()
    bad.rename(repository / model / "2")
    eventually(lambda: states(server, model).get("2", ("", ""))[0] == "UNAVAILABLE", "it is refused")
    assert serves(server, model, "1")
    assert error_of(server, model, OLD) < 1e-5
    NEW.publish(repository / model)
    eventually(lambda: states(server, model)["1"][0] == "UNAVAILABLE", "the older version is unloaded")
    assert server.infer(IMAGES, model).model_version == "3"


def test_links_out_of_the_repository_are_refused(
    server: ServerProcess, repository: Path, model: str, tmp_path: Path
) -> None:
    outside = NEW.publish(tmp_path / "outside")
    (repository / model / "2").symlink_to(outside)
    (repository / model / "3").mkdir()
    for name in ("manifest.json", "golden.npz"):
        shutil.copy(outside / name, repository / model / "3")
    (repository / model / "3" / "model.onnx").symlink_to(outside / "model.onnx")
    (repository / f"{model}-folder").symlink_to(outside.parent)
    (repository / model / "4").symlink_to(repository / "still" / "1")  # inside: a name like any other
    eventually(lambda: serves(server, model, "4"), "a link inside the repository is followed")
    for name, version in ((model, "2"), (model, "3"), (f"{model}-folder", "1")):
        eventually(
            lambda n=name, v=version: states(server, n).get(v, ("", ""))[0] == "UNAVAILABLE",  # type: ignore[misc]
            f"{name}/{version} is refused",
        )
        assert "symbolic link that leads out of the repository" in states(server, name)[version][1]
    assert error_of(server, model, OLD) < 1e-5


def test_fifo_in_place_of_a_model_is_refused(server: ServerProcess, repository: Path, model: str) -> None:
    version = NEW.publish(repository / ".fifo" / model)
    (version / "model.onnx").unlink()
    os.mkfifo(version / "model.onnx")
    version.rename(repository / model / "2")
    eventually(lambda: states(server, model).get("2", ("", ""))[0] == "UNAVAILABLE", "it is refused")
    assert "model.onnx is not a regular file" in states(server, model)["2"][1]
    assert error_of(server, model, OLD) < 1e-5


def test_folders_without_a_version_number_are_logged(
    server: ServerProcess, repository: Path, model: str
) -> None:
    (repository / model / "latest").mkdir()
    (repository / model / "03").mkdir()
    said = f"{model}/: ignored folders whose names are not positive integers: '03', 'latest'"
    eventually(lambda: said in server.log, "it is logged")
    assert list(states(server, model)) == ["1"]
    for name in ("latest", "03"):
        (repository / model / name).rmdir()
    eventually(lambda: f"{model}/: the problem is over" in server.log, "it is logged that they are gone")


def test_unloaded_model_stays_unloaded_until_it_is_loaded(
    server: ServerProcess, repository: Path, model: str
) -> None:
    server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model))
    NEW.publish(repository / model)
    marker = OLD.publish(repository / f"{model}-marker").name
    eventually(lambda: serves(server, f"{model}-marker", marker), "the repository has been looked at since")
    assert status_of(lambda: server.infer(IMAGES, model))[0] == grpc.StatusCode.UNAVAILABLE
    server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model))
    assert error_of(server, model, NEW) < 1e-5


def test_models_serve_on_while_the_repository_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    OLD.publish(folder / "tiny")
    with ServerProcess(folder, tmp_path / "server", "--poll-s", "0.1") as server:
        folder.rename(tmp_path / "away")
        eventually(lambda: "cannot be read" in server.log, "it is noticed")
        assert error_of(server, "tiny", OLD) < 1e-5
        assert server.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert is_healthy(server, "")
        (tmp_path / "away").rename(folder)
        NEW.publish(folder / "tiny")
        eventually(lambda: serves(server, "tiny", "2"), "the repository is followed again")
        assert error_of(server, "tiny", NEW) < 1e-5
        assert server.log.count("cannot be read") == 1, "said once, not at every look"


def test_explicit_control_loads_only_named_models(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    OLD.publish(folder / "tiny")
    OLD.publish(folder / "other")
    flags = ("--control", "explicit", "--load-model", "other", "--poll-s", "0.1")
    with ServerProcess(folder, tmp_path / "server", *flags) as server:
        assert error_of(server, "other", OLD) < 1e-5
        code, text = status_of(lambda: server.infer(IMAGES))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "it is loaded only on request, by RepositoryModelLoad" in text
        server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert error_of(server, "tiny", OLD) < 1e-5
        NEW.publish(folder / "tiny")
        server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
        assert list(states(server, "tiny")) == ["1"], "nobody asked for the new version"
        server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert error_of(server, "tiny", NEW) < 1e-5
        request = infer_request(IMAGES, "other")
        assert status_of(lambda: server.stub.ModelInfer(request))[0] == grpc.StatusCode.UNAVAILABLE


def test_model_to_load_must_exist(tmp_path: Path) -> None:
    OLD.publish(tmp_path / "models" / "tiny")
    flags = ("--repository", str(tmp_path / "models"), "--port", "0", "--device", "cpu")
    ended = run_cli("serve", *flags, "--control", "explicit", "--load-model", "tony")
    assert ended.returncode == 1
    assert "cannot load 'tony': the repository has 'tiny'" in ended.stderr
