"""``foldserve export`` as a whole: what it publishes, and that it publishes nothing when all is not well."""

import dataclasses
import gc
import hashlib
import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from foldserve.artifact.format import Golden, ModelMetadata, read_artifact
from foldserve.artifact.versions import list_versions
from foldserve.export import pipeline
from foldserve.export.config import ExportConfig
from foldserve.export.errors import ExportError, ParityError, SourceError
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.pipeline import export_model, export_version
from foldserve.export.publish import publish
from foldserve.runtime.session import Session
from foldserve.training.checkpoint import save_checkpoint
from foldserve.training.errors import CheckpointError, DatasetError
from tests.export.conftest import LABELS, MEAN, SPEC, STD
from tests.support.artifacts import TinyNetwork

ROOT = Path(__file__).parents[2]


def export(run_dir: Path, repository: Path, **settings) -> int:
    return export_model(ExportConfig(source=run_dir, repository=repository, **settings))


def test_a_run_becomes_a_sound_version(run_dir, tmp_path, checkpoint, dataset, capsys):
    assert export(run_dir, tmp_path / "models") == 0
    artifact = read_artifact(tmp_path / "models" / "my-run" / "1")
    session = Session(artifact.model, device="cpu")
    assert [(spec.name, spec.datatype, spec.shape) for spec in session.inputs] == [
        ("image", "UINT8", (-1, 1, 28, 28))
    ]
    assert [(spec.name, spec.datatype, spec.shape) for spec in session.outputs] == [
        ("logits", "FP32", (-1, 10)),
        ("probabilities", "FP32", (-1, 10)),
    ]
    images = dataset.test_images.numpy()[:7]
    logits, probabilities = session.run(["logits", "probabilities"], {"image": images})
    with torch.no_grad():
        expected = checkpoint.build()(torch.from_numpy(images))
    assert np.abs(logits - expected.numpy()).max() < 5e-5  # half the contract
    assert np.abs(probabilities - expected.softmax(1).numpy()).max() < 1e-5
    printed = capsys.readouterr().out
    assert "4 folded, 0 rewritten" in printed
    assert str(tmp_path / "models" / "my-run" / "1") in printed


def test_the_file_alone_says_everything_needed(run_dir, tmp_path):
    export(run_dir, tmp_path / "models")
    props = Session((tmp_path / "models/my-run/1/model.onnx").read_bytes(), device="cpu").props
    metadata = ModelMetadata.from_props(props)
    assert (metadata.labels, metadata.mean, metadata.std, metadata.image) == (LABELS, MEAN, STD, SPEC)
    assert metadata.provenance["architecture"] == "lenet"
    assert metadata.provenance["weights"] == "raw"
    assert metadata.provenance["dataset"] == "tiny"


def test_the_manifest_reports_folding_parity_and_accuracy(run_dir, tmp_path):
    export(run_dir, tmp_path / "models")
    manifest = json.loads((tmp_path / "models/my-run/1/manifest.json").read_text())
    assert [fold["action"] for fold in manifest["folding"]] == ["folded"] * 4
    assert 0 < manifest["parity"]["max_abs_err"] < 5e-5
    assert manifest["accuracy"]["before"] == manifest["accuracy"]["after"]
    assert manifest["accuracy"]["image_count"] == 300
    assert manifest["golden"]["count"] == 256
    assert manifest["golden"]["synthetic"] is False
    assert manifest["precision"] == "fp32"
    assert manifest["tools"]["torch"] == torch.__version__


def test_golden_logits_are_those_of_the_unfolded_network(run_dir, tmp_path, checkpoint):
    export(run_dir, tmp_path / "models")
    golden = read_artifact(tmp_path / "models/my-run/1").golden
    with torch.no_grad():
        expected = checkpoint.build()(torch.from_numpy(golden.images)).numpy()
    assert np.abs(golden.reference_logits - expected).max() < 1e-6


def test_averaged_weights_are_used_if_the_run_kept_them(run_dir, tmp_path, checkpoint, capsys):
    averaged = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    averaged["classifier.5.bias"] += 1.0
    save_checkpoint(run_dir / "best.pt", dataclasses.replace(checkpoint, ema_weights=averaged))
    export(run_dir, tmp_path / "models")
    model_proto = onnx.load(tmp_path / "models/my-run/1/model.onnx")
    (bias,) = (tensor for tensor in model_proto.graph.initializer if tensor.name == "classifier.5.bias")
    assert np.array_equal(onnx.numpy_helper.to_array(bias), averaged["classifier.5.bias"].numpy())
    assert "ema weights" in capsys.readouterr().out


def test_each_export_is_the_next_version_and_touches_no_other(run_dir, tmp_path):
    export(run_dir, tmp_path / "models", name="lenet")
    first = {path: path.read_bytes() for path in (tmp_path / "models/lenet/1").iterdir()}
    export(run_dir, tmp_path / "models", name="lenet", skip_same=False)
    assert list_versions(tmp_path / "models/lenet") == [1, 2]
    assert all(path.read_bytes() == content for path, content in first.items())


def test_same_model_is_published_once(run_dir, tmp_path, capsys):
    for _ in range(2):
        export(run_dir, tmp_path / "models", name="lenet")
    assert list_versions(tmp_path / "models/lenet") == [1]
    assert "already is exactly this model" in capsys.readouterr().out
    damaged = tmp_path / "models/lenet/1/model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    export(run_dir, tmp_path / "models", name="lenet")
    assert list_versions(tmp_path / "models/lenet") == [1, 2]


def test_an_older_version_that_is_the_same_is_found_and_can_be_promoted(run_dir, tmp_path, capsys):
    models = tmp_path / "models"
    first = export_version(ExportConfig(source=run_dir, repository=models, name="lenet"))
    TinyNetwork().publish(models / "lenet")
    capsys.readouterr()
    assert export_version(ExportConfig(source=run_dir, repository=models, name="lenet")) == first
    assert f"foldserve models promote lenet 1 --repository {models}" in capsys.readouterr().out
    assert json.loads((first / "manifest.json").read_text())["source"]["run"] == "my-run"


EXPORT_ELSEWHERE = """
import sys
import weakref
from pathlib import Path
from foldserve.export.graph.build import build_model
from foldserve.export.graph.trace import trace
from foldserve.artifact.format import ModelMetadata
from foldserve.training.checkpoint import load_checkpoint
checkpoint = load_checkpoint(Path(sys.argv[1]))
metadata = ModelMetadata(checkpoint.labels, checkpoint.mean, checkpoint.std, checkpoint.image)
graph = trace(checkpoint.build().network, checkpoint.image.shape).model
Path("model.onnx").write_bytes(build_model(graph, metadata).content)
"""


def test_bytes_are_the_same_from_any_folder_and_process(run_dir, tmp_path, built):
    """Another process and hash seed, in another folder, with the sources at another path."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "foldserve").symlink_to(ROOT / "foldserve")
    script = folder / "script.py"
    script.write_text(EXPORT_ELSEWHERE)
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONHASHSEED": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    subprocess.run([sys.executable, str(script), str(run_dir)], cwd=folder, check=True, env=environment)
    content = (folder / "model.onnx").read_bytes()
    assert hashlib.sha256(content).digest() == hashlib.sha256(built.content).digest()
    for path in (tmp_path, ROOT):
        assert str(path).encode() not in content
    assert b"stack_trace" not in content


def test_another_checkpoint_gives_other_bytes(run_dir, tmp_path, checkpoint):
    """The twin of the test above: equal hashes must not be those of something constant."""
    export(run_dir, tmp_path / "models")
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    weights["classifier.5.bias"][0] += 1e-3
    save_checkpoint(run_dir / "best.pt", dataclasses.replace(checkpoint, weights=weights))
    export(run_dir, tmp_path / "models")
    one, two = (read_artifact(tmp_path / "models/my-run" / version).model_sha256 for version in "12")
    assert one != two


def test_the_file_loads_in_older_runtimes(run_dir, tmp_path):
    """IR 10 and opset 18 are what ONNX Runtime 1.20 (November 2024) reads."""
    export(run_dir, tmp_path / "models")
    model_proto = onnx.load(tmp_path / "models/my-run/1/model.onnx")
    assert model_proto.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model_proto.opset_import] == [("", 18)]
    assert model_proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def assert_nothing_published(repository: Path) -> None:
    assert not [path for path in repository.rglob("*") if path.name == "manifest.json"]


def test_file_that_disagrees_is_not_published_and_is_saved_as_rejected(run_dir, tmp_path, monkeypatch):
    sound_build = pipeline.build_model

    def damaging_build(model, metadata):
        built = sound_build(model, metadata)
        model_proto = onnx.load_from_string(built.content)
        (tensor,) = (entry for entry in model_proto.graph.initializer if entry.name == "features.2.conv.bias")
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[0] += 0.5
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return dataclasses.replace(built, file=ModelFile(model_proto.SerializeToString()))

    monkeypatch.setattr(pipeline, "build_model", damaging_build)
    with pytest.raises(
        ParityError, match=r"differ by up to .* the first layer to differ is features\.2\.conv"
    ) as raised:
        export(run_dir, tmp_path / "models")
    assert_nothing_published(tmp_path / "models")
    evidence = tmp_path / "models/.rejected/my-run"
    assert str(evidence) in str(raised.value)
    assert sorted(path.name for path in evidence.iterdir()) == ["images.npy", "model.onnx", "reason.json"]


def test_sessions_are_closed_before_layers_are_compared(run_dir, tmp_path, monkeypatch):
    """They hold all weights, as does the session that computes the layers."""
    opened, compared = [], []
    open_sessions = pipeline.open_sessions

    def wrong_sessions(model):
        sessions = open_sessions(model)
        opened.extend(map(weakref.ref, sessions))
        return sessions

    def first_divergence(*_):
        gc.collect()
        compared.append([session() for session in opened])
        return "compared"

    def fail(*_, **__):
        raise ParityError("wrong")

    monkeypatch.setattr(pipeline, "open_sessions", wrong_sessions)
    monkeypatch.setattr(pipeline, "first_divergence", first_divergence)
    monkeypatch.setattr(pipeline, "replay_golden", fail)
    with pytest.raises(ParityError, match="wrong; compared"):
        export(run_dir, tmp_path / "models")
    assert compared == [[None]]


def test_export_whose_golden_pairs_fail_is_not_published(run_dir, tmp_path, monkeypatch):
    true_golden = pipeline.make_golden

    def wrong_golden(*args, **kwargs):
        golden = true_golden(*args, **kwargs)
        wrong = golden.runtime_logits.copy()
        wrong[0, 0] += 10 * golden.reference_tolerance
        return dataclasses.replace(golden, runtime_logits=wrong)

    monkeypatch.setattr(pipeline, "make_golden", wrong_golden)
    with pytest.raises(ParityError, match="nothing was published"):
        export(run_dir, tmp_path / "models")
    assert_nothing_published(tmp_path / "models")


def with_weights(checkpoint, **changes):
    return dataclasses.replace(checkpoint, weights={**checkpoint.weights, **changes})


def damaged_checkpoints(checkpoint):
    bias = checkpoint.weights["classifier.5.bias"]
    missing = {name: tensor for name, tensor in checkpoint.weights.items() if name != "classifier.5.bias"}
    return {
        "nan": (with_weights(checkpoint, **{"classifier.5.bias": bias * float("nan")}), SourceError, "NaN"),
        "missing key": (
            dataclasses.replace(checkpoint, weights=missing),
            CheckpointError,
            "classifier.5.bias",
        ),
        "extra key": (with_weights(checkpoint, extra=bias), CheckpointError, "extra"),
        "wrong shape": (
            with_weights(checkpoint, **{"classifier.5.bias": bias[:5]}),
            CheckpointError,
            "size mismatch",
        ),
        "unknown architecture": (dataclasses.replace(checkpoint, arch="lenot"), CheckpointError, "lenot"),
        "labels": (
            dataclasses.replace(checkpoint, labels=LABELS[:9]),
            CheckpointError,
            "class_count is 10, but image and labels say 9",
        ),
        "unknown data set": (dataclasses.replace(checkpoint, dataset="nowhere"), DatasetError, "nowhere"),
    }


@pytest.mark.parametrize(
    "case",
    ["nan", "missing key", "extra key", "wrong shape", "unknown architecture", "labels", "unknown data set"],
)
def test_a_bad_checkpoint_is_refused_and_nothing_published(case, run_dir, tmp_path, checkpoint):
    bad, error, message = damaged_checkpoints(checkpoint)[case]
    save_checkpoint(run_dir / "best.pt", bad)
    with pytest.raises(error, match=message):
        export(run_dir, tmp_path / "models")
    assert_nothing_published(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"], ids=["empty", "text", "zip"]
)
def test_files_that_are_not_checkpoints_are_refused(content, tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.pt"):
        export(path, tmp_path / "models")
    assert_nothing_published(tmp_path)


def test_a_repository_that_is_a_file_is_refused(run_dir, tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(SourceError, match="models is a file"):
        export(run_dir, tmp_path / "models")


def test_a_full_or_unwritable_repository_is_refused(run_dir, metadata):
    repository = Path("/proc/foldserve")  # nothing can be made there, by root neither
    with pytest.raises(SourceError, match="foldserve cannot be written: No such file or directory"):
        export(run_dir, repository)
    golden = Golden(
        np.zeros((1, 1, 2, 2), np.uint8), *np.zeros((2, 1, 3), np.float32), 1e-4, 1e-5, synthetic=True
    )
    with pytest.raises(SourceError, match=r"cannot be written: .*nothing was published"):  # since the check
        publish(repository / "a", b"", golden, {}, metadata)


@pytest.mark.parametrize("skip_same", [False, True])
def test_unwritable_model_folder_is_reported_before_verification(run_dir, tmp_path, monkeypatch, skip_same):
    """Its name is known once the run is read; here a file stands in its place."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-run").write_text("")
    monkeypatch.setattr("foldserve.export.pipeline.open_sessions", lambda _: pytest.fail("a proof was begun"))
    with pytest.raises(SourceError, match="my-run is a file"):
        export(run_dir, tmp_path / "models", skip_same=skip_same)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "-x", "a b"])
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(ValidationError, match="cannot be a model name"):
        ExportConfig(source=Path("x"), name=name)


def test_a_run_folder_with_an_unusable_name_asks_for_one(tmp_path, checkpoint):
    folder = tmp_path / "my run (2)"
    folder.mkdir()
    save_checkpoint(folder / "best.pt", checkpoint)
    with pytest.raises(ExportError, match="give one with --name"):
        export(folder, tmp_path / "models")
