"""State dicts as training scripts save them are loaded without running their code; other files are named."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.utils import parametrizations

from foldserve.export.config import ExportConfig
from foldserve.export.errors import SourceError
from foldserve.export.sources.file_kind import refuse_other_kinds
from foldserve.export.sources.load import load_source
from foldserve.export.sources.weights_file import load_into, read_weights
from foldserve.training.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 5)


class Versioned(Net):
    """As torchvision's MNASNet: it refuses a state without a version, and converts that of version 1."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        version = metadata.get("version")
        if version not in (1, 2):
            raise ValueError(f"version should be 1 or 2 instead of {version}")
        if version == 1:
            state[f"{prefix}head.weight"] = state.pop(f"{prefix}classifier.weight")
            state[f"{prefix}head.bias"] = state.pop(f"{prefix}classifier.bias")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def trained(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(7)
    return kind()


def loaded(path: Path, network: nn.Module | None = None) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    network = Net() if network is None else network
    weights = read_weights(path)
    renamed = load_into(network, weights, path, arch="nets:make", class_count=5)
    return network.state_dict(), (*weights.remarks, *renamed)


def check_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def renamed(weights: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in weights.items()}


def payloads(weights: Mapping[str, Tensor]) -> dict[str, tuple[Any, str]]:
    settings = argparse.Namespace(lr=0.1, data=["a", "b"], nested=argparse.Namespace(deep=None))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    return {
        "torchvision": (
            {
                "model": weights,
                "optimizer": {"state": {0: {"x": torch.ones(2)}}},
                "epoch": 3,
                "args": settings,
            },
            "'model'",
        ),
        "timm": (
            {
                "state_dict": zeros,
                "state_dict_ema": weights,
                "args": settings,
                "metric": np.float64(3.5),
                "seed": np.arange(3),
            },
            "'state_dict_ema' in weights.pt rather than state_dict",
        ),
        "ema": (
            {"model": zeros, "ema": {"decay": 0.9, "module": weights}},
            "'ema' in weights.pt rather than model",
        ),
        "ema without weights": ({"ema": {"decay": 0.9}, "state_dict": weights}, "'state_dict'"),
        "numbers beside the tensors": (
            {**weights, "epoch": 3, "args": settings.data},
            "left out 'epoch', 'args'",
        ),
        "a pickled module": (trained(), "none of whose code was run"),
        "a pickled module as ema": ({"ema": trained(), "model": None}, "none of whose code was run"),
        "a part in DataParallel": (renamed(weights, "features.", "features.module."), "wrappers (module)"),
        "a compiled part in DataParallel": (
            renamed(weights, "features.", "features._orig_mod.module."),
            "wrappers (_orig_mod, module)",
        ),
        "both around all": ({f"module._orig_mod.{name}": weights[name] for name in weights}, "'_orig_mod.'"),
        "lightning": ({"state_dict": {f"net.{name}": weights[name] for name in weights}}, "prefix 'net.'"),
    }


CASES = list(payloads(trained().state_dict()))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_found_in_what_training_scripts_save(case, zipped, tmp_path):
    expected = trained().state_dict()
    if not zipped and case.startswith("a pickled module"):
        pytest.skip("torch reads a module in the old format only by running it")
    payload, said = payloads(expected)[case]
    torch.save(payload, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    actual, remarks = loaded(tmp_path / "weights.pt")
    check_equal(actual, expected)
    assert any(said in remark for remark in remarks), remarks


class Dangerous:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("function", [os.system, eval, exec, shutil.copyfile, pickle.loads, getattr])
def test_no_code_in_a_weights_file_is_run(function, zipped, tmp_path, monkeypatch):
    """The twin: unpickled as Python does it, the same file creates a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    copies = Dangerous(shutil.copyfile, "file", "made")
    arguments: dict[Any, tuple[Any, ...]] = {
        os.system: ("touch made",),
        shutil.copyfile: ("file", "made"),
        pickle.loads: (pickle.dumps(copies),),
        getattr: (copies, "upper"),
    }
    call = Dangerous(function, *arguments.get(function, ("__import__('pathlib').Path('made').touch()",)))
    weights = trained().state_dict()
    torch.save({"model": weights, "args": call}, "weights.pt", _use_new_zipfile_serialization=zipped)
    if function is os.system:  # torch never reads what names os or sys
        with pytest.raises(SourceError, match="would run code"):
            read_weights(tmp_path / "weights.pt")
    else:
        check_equal(read_weights(tmp_path / "weights.pt").tensors, weights)
    assert not (tmp_path / "made").exists()
    torch.load("weights.pt", weights_only=False)
    assert (tmp_path / "made").exists()


def test_a_weight_that_only_code_could_make_is_refused_by_name(tmp_path):
    payload = trained().state_dict() | {"head.bias": Dangerous(shutil.which, "x")}
    torch.save(payload, tmp_path / "weights.pt")
    with pytest.raises(
        SourceError, match=r"'head\.bias' \(shutil\.which\) cannot be read without running code"
    ):
        read_weights(tmp_path / "weights.pt")


def test_versions_of_modules_are_passed_on(tmp_path):
    expected = trained(Versioned).state_dict()
    path = tmp_path / "weights.pt"
    torch.save({"model": expected, "args": argparse.Namespace()}, path)
    actual, _ = loaded(path, Versioned())
    check_equal(actual, expected)
    torch.save(dict(expected), path)  # without versions, the network's own is meant
    check_equal(loaded(path, Versioned())[0], expected)
    (tmp_path / "weights.safetensors").write_bytes(save(dict(expected)))
    check_equal(loaded(tmp_path / "weights.safetensors", Versioned())[0], expected)


def test_a_module_converts_weights_of_its_earlier_version(tmp_path):
    expected = trained(Versioned).state_dict()
    earlier = nn.Module().state_dict()
    earlier.update(renamed(expected, "head.", "classifier."))
    earlier._metadata[""] = {"version": 1}  # type: ignore[attr-defined]
    torch.save(earlier, tmp_path / "weights.pt")
    actual, remarks = loaded(tmp_path / "weights.pt", Versioned())
    check_equal(actual, expected)
    assert any("an earlier version" in remark for remark in remarks)


def test_an_unknown_version_is_refused_in_a_line(tmp_path):
    state = trained(Versioned).state_dict()
    state._metadata[""] = {"version": 9}  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(
        SourceError, match=r"nets:make does not load .* version should be 1 or 2 instead of 9"
    ):
        loaded(tmp_path / "weights.pt", Versioned())


def old_weight_norm() -> nn.Module:
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())


def new_weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())


def old_spectral_norm() -> nn.Module:
    return nn.Sequential(torch.nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())


def new_spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [
        (old_weight_norm, new_weight_norm),
        (new_weight_norm, old_weight_norm),
        (old_spectral_norm, new_spectral_norm),
        (new_spectral_norm, old_spectral_norm),
    ],
)
def test_norms_of_weights_are_matched_across_their_two_spellings(saved_by, loaded_by, tmp_path):
    torch.manual_seed(7)
    saved, network, image = saved_by(), loaded_by(), torch.rand(2, 3, 8, 8)
    saved(image)  # spectral norm estimates its vectors in training mode
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    _, remarks = loaded(tmp_path / "weights.pt", network)
    assert any("norm as saved by an older or newer PyTorch" in remark for remark in remarks)
    with torch.no_grad():
        expected, actual = saved.eval()(image), network.eval()(image)
    assert torch.allclose(actual, expected, atol=1e-6)


def test_names_that_would_become_equal_are_not_changed(tmp_path):
    weights = trained().state_dict()
    both = {**weights, "features.module.0.weight": torch.zeros(4, 3, 3, 3)}
    torch.save(both, tmp_path / "weights.pt")
    with pytest.raises(SourceError, match=r"not in the network features\.module\.0\.weight"):
        loaded(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "a Git LFS pointer"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
        (b"<!-- moved -->\n<HTML>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web server's error message"),
        (b'{"error": "Repository not found"}', "a web server's error message"),
        (b"Entry not found", "a web server's error message"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
        (b"\x1c\0\0\0TFL3" + bytes(64), "a TensorFlow Lite file"),
        (b"\x1f\x8b\x08" + bytes(64), "compressed"),
    ],
)
def test_files_of_other_kinds_are_named_for_what_they_are(content, message, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_weights(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_archives_of_programs_are_named(tmp_path):
    path = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(SourceError, match=r"TorchScript archive, .*state_dict"):
        read_weights(path)
    torch.save(trained().state_dict(), path)
    refuse_other_kinds(path)  # a state dict is none


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "flags", [{}, {"labels": "labels.txt", "input": "3x8x8"}], ids=["alone", "as for ONNX"]
)
def test_files_that_are_no_checkpoints_are_named_with_the_way_to_export_them(tmp_path, flags):
    program, whole, weights = (tmp_path / name for name in ("program.pt", "whole.pt", "weights.pt"))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), program)
    torch.save(trained(), whole)
    torch.save(trained().state_dict(), weights)
    for path, error, message in (
        (program, SourceError, "program.pt is a TorchScript archive, "),
        (
            whole,
            CheckpointError,
            "whole.pt is not a checkpoint, .* --arch MODULE:FACTORY --weights .*whole.pt, or",
        ),
        (weights, CheckpointError, "but not a checkpoint .* --weights .*weights.pt, or convert it to ONNX"),
    ):
        with pytest.raises(error, match=message):
            load_source(ExportConfig(source=path, **flags))


def test_safetensors_are_known_by_their_content(tmp_path):
    expected = dict(trained().state_dict())
    (tmp_path / "pytorch_model.bin").write_bytes(save(expected))
    check_equal(loaded(tmp_path / "pytorch_model.bin")[0], expected)
