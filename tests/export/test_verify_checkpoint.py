"""`models verify --against`: a version is held against the training run that it is said to be of."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from foldserve import cli
from foldserve.artifact.format import read_artifact
from foldserve.export.precision import choose as precision
from foldserve.export.precision.speed import Speed
from foldserve.training.checkpoint import save_checkpoint
from foldserve.training.datasets.registry import DATASETS
from tests.support.taught import export_taught


@pytest.fixture(scope="module")
def published(taught, tmp_path_factory):
    """A folder with a run and the versions made from it: 1 in fp32, 2 in int8."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "measure_speed", lambda *_: [Speed("CPUExecutionProvider", 1, 1, 2.0, 1.0)])
        export_taught(taught, folder, patch)
        artifact = export_taught(taught, folder, patch, precision="int8", max_accuracy_drop=10)
        assert artifact.manifest["precision"] == "int8"
    return folder


@pytest.fixture
def folder(published, tmp_path, taught, monkeypatch):
    """A copy that a test may damage."""
    monkeypatch.setitem(DATASETS, "taught", lambda *_: taught.dataset)
    return shutil.copytree(published, tmp_path / "copy")


def verify(folder, version, *flags, run="run") -> int:
    command = ["models", "verify", "--repository", str(folder / "models"), "--against", str(folder / run)]
    return cli.main([*command, "--model-version", str(version), *flags])


@pytest.fixture
def other_run(folder, taught):
    """The same architecture with other weights, as another seed gives them."""
    torch.manual_seed(99)
    weights = {
        name: tensor + 0.01 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in taught.checkpoint.weights.items()
        if "running_var" not in name
    } | {name: tensor for name, tensor in taught.checkpoint.weights.items() if "running_var" in name}
    (folder / "other").mkdir()
    save_checkpoint(folder / "other/best.pt", dataclasses.replace(taught.checkpoint, weights=weights))
    return "other"


@pytest.mark.parametrize("version", [1, 2], ids=["fp32", "int8"])
def test_version_is_confirmed_against_its_own_run(folder, version, capsys):
    assert verify(folder, version) == 0
    printed = capsys.readouterr().out
    assert f"models/taught/{version}/ was made from" in printed
    assert "120 test images of taught: 100.00% the same predictions" in printed


@pytest.mark.parametrize("version", [1, 2], ids=["fp32", "int8"])
def test_run_with_another_seed_is_detected(folder, version, other_run, capsys):
    assert verify(folder, version, run=other_run) == 1
    assert "from another network or from other weights" in capsys.readouterr().out


def test_a_damaged_file_is_found(folder, capsys):
    path = folder / "models/taught/1/model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert verify(folder, 1) == 1
    assert "its SHA-256 is" in capsys.readouterr().out


def replace_model(version, change) -> None:
    """Change one constant of a version's file and make its manifest agree."""
    path = version / "model.onnx"
    model_proto = onnx.load(path)
    change(model_proto)
    content = model_proto.SerializeToString()
    path.write_bytes(content)
    manifest = json.loads((version / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        facts["sha256"] = hashlib.sha256((version / name).read_bytes()).hexdigest()
    (version / "manifest.json").write_text(json.dumps(manifest))


def scale(name: str, factor: float):
    def change(model_proto):
        (tensor,) = (entry for entry in model_proto.graph.initializer if entry.name == name)
        array = numpy_helper.to_array(tensor)
        scaled = (array * np.array(factor, array.dtype)).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(scaled, name))

    return change


def test_a_changed_file_whose_hash_was_changed_too_is_found(folder, capsys):
    replace_model(folder / "models/taught/1", scale("features.2.conv.weight", 1.01))
    assert verify(folder, 1) == 1
    assert "the first layer to differ is features.2.conv" in capsys.readouterr().out


def test_a_changed_int8_file_whose_hash_was_changed_too_is_found(folder, capsys):
    replace_model(folder / "models/taught/2", scale("features.2.conv.weight_scale", 2.0))
    assert verify(folder, 2) == 1
    assert "off by up to" in capsys.readouterr().out


@pytest.mark.parametrize("version", [1, 2], ids=["fp32", "int8"])
@pytest.mark.parametrize("change", ["axis", "input"])
def test_probabilities_that_are_not_of_the_logits_are_found(folder, version, change, capsys):
    """Every logit is right: the softmax is over the images, or of the logits' negatives."""

    def break_softmax(model_proto):
        (softmax,) = (node for node in model_proto.graph.node if "probabilities" in node.output)
        if change == "axis":
            softmax.attribute[0].i = 0
            return
        model_proto.graph.node.insert(
            len(model_proto.graph.node) - 1, onnx.helper.make_node("Neg", [softmax.input[0]], ["minus"])
        )
        (softmax,) = (node for node in model_proto.graph.node if "probabilities" in node.output)
        softmax.input[0] = "minus"

    replace_model(folder / f"models/taught/{version}", break_softmax)
    assert verify(folder, version) == 1
    assert "softmax of their logits over the classes" in capsys.readouterr().out


def test_golden_pairs_that_the_file_does_not_reproduce_are_found(folder, capsys):
    """The network's logits in them are right; those of the file are another file's."""
    version = folder / "models/taught/1"
    golden = read_artifact(version).golden
    shifted = dataclasses.replace(golden, runtime_logits=golden.runtime_logits + np.float32(0.01))
    (version / "golden.npz").write_bytes(shifted.to_bytes())
    replace_model(version, lambda _: None)
    assert verify(folder, 1) == 1
    assert "compared with this file at export" in capsys.readouterr().out


def test_other_labels_are_found(folder, taught, capsys):
    names = ("renamed", *taught.checkpoint.labels[1:])
    save_checkpoint(folder / "run/best.pt", dataclasses.replace(taught.checkpoint, labels=names))
    assert verify(folder, 1) == 1
    assert "taught has other classes than in training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "nothing"], "there is no model 'nothing'"),
        (["--model-version", "7"], "has no version 7, only 1, 2"),
    ],
    ids=["name", "version"],
)
def test_missing_models_and_versions_are_reported(folder, flags, message, capsys):
    command = ["models", "verify", "--repository", str(folder / "models"), "--against", str(folder / "run")]
    assert cli.main([*command, *flags]) == 1
    assert message in capsys.readouterr().err


def test_checkpoint_flags_without_against_are_refused(capsys):
    assert cli.main(["models", "verify", "--name", "lenet"]) == 2
    assert "--name needs --against CHECKPOINT" in capsys.readouterr().err
