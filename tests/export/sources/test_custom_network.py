"""`foldserve export --arch package.module:factory`: what is published, and what is refused and how."""

from __future__ import annotations

import copy
import gc
import json
import sys
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from foldserve.artifact.format import ModelMetadata, read_artifact
from foldserve.export.config import ExportConfig
from foldserve.export.errors import ExportError, FoldError, ParityError, SourceError, TraceError
from foldserve.export.pipeline import export_model
from foldserve.export.sources import custom_network
from foldserve.export.sources.load import load_source
from foldserve.export.sources.torch_network import TorchNetwork
from foldserve.imaging import prepare_image
from foldserve.runtime.session import Session
from foldserve.serving.commands.command_configs import ListConfig
from foldserve.serving.commands.models import list_models, verify_models
from foldserve.training.errors import ModelError
from foldserve.verify_config import VerifyConfig
from tests.support.own_project import LABELS, make_project, trained_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from foldserve.export.sources.weights_file import Weights

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from make_project(tmp_path, monkeypatch)


def config(folder: Path, **settings: Any) -> ExportConfig:
    """The command with everything it needs; None takes a flag away."""
    given: dict[str, Any] = {
        "arch": "own_networks:net",
        "weights": folder / "weights.pt",
        "input": "3x16x16",
        "labels": folder / "labels.txt",
        "mean": MEAN,
        "std": STD,
        "repository": folder / "models",
    }
    return ExportConfig(**{key: value for key, value in (given | settings).items() if value is not None})


def published(folder: Path) -> list[Path]:
    return sorted(folder.glob("models/*/*/manifest.json"))


def by_hand(weights: dict[str, torch.Tensor], images: np.ndarray) -> np.ndarray:
    """The network's logits from its weights alone, with no code of the exporter."""
    x = (torch.from_numpy(images).double() / 255 - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(
        STD
    ).reshape(3, 1, 1)
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = F.conv2d(x, w["conv.weight"], padding=1)
    statistics = w["norm.running_mean"], w["norm.running_var"]
    x = F.max_pool2d(F.relu(F.batch_norm(x, *statistics, w["norm.weight"], w["norm.bias"])), 4)
    return F.linear(x.flatten(1), w["head.weight"], w["head.bias"]).numpy()


def test_custom_network_is_folded_verified_and_published(tmp_path, capsys):
    assert export_model(config(tmp_path)) == 0
    (manifest_path,) = published(tmp_path)
    assert manifest_path.parent == tmp_path / "models/net/1"
    artifact = read_artifact(manifest_path.parent)
    session = Session(artifact.model, device="cpu", intra_op_threads=1)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 16, 16), dtype=np.uint8)
    logits = session.run(["logits"], {"image": images})[0]
    assert np.abs(logits - by_hand(trained_weights(), images)).max() < 5e-5
    metadata = ModelMetadata.from_props(session.props)
    assert (metadata.labels, metadata.mean, metadata.std) == (LABELS, MEAN, STD)
    assert metadata.image.shape == (3, 16, 16)
    manifest = json.loads(manifest_path.read_text())
    assert [fold["action"] for fold in manifest["folding"]] == ["folded", "folded"]
    assert manifest["source"]["architecture"] == "own_networks:net"
    assert str(tmp_path) not in manifest_path.read_text()
    assert "2 folded, 0 rewritten" in capsys.readouterr().out


def test_export_without_images_is_marked_synthetic(tmp_path, capsys):
    export_model(config(tmp_path))
    assert "no --images: verified on seeded synthetic images" in capsys.readouterr().out
    (path,) = published(tmp_path)
    manifest = json.loads(path.read_text())
    assert manifest["golden"]["synthetic"] is True
    assert manifest["golden"]["source"] == manifest["accuracy"]["images"] == "seeded synthetic images"
    assert {entry["images"] for entry in manifest["parity"]["comparisons"]} == {"random", "synthetic"}
    assert read_artifact(path.parent).golden.synthetic
    list_models(ListConfig(repository=tmp_path / "models"))
    assert "proven on synthetic images alone" in capsys.readouterr().out
    assert verify_models(VerifyConfig(repository=tmp_path / "models", device="cpu")) == 0
    assert "256 synthetic golden pairs reproduced" in capsys.readouterr().out


def write_images(folder: Path, names: tuple[str, ...], per_class: int) -> None:
    generator = np.random.default_rng(3)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_images_of_known_classes_are_golden_and_tell_the_accuracy(tmp_path, capsys):
    write_images(tmp_path / "pictures", LABELS, per_class=7)
    export_model(config(tmp_path, images=tmp_path / "pictures"))
    (path,) = published(tmp_path)
    golden = read_artifact(path.parent).golden
    assert not golden.synthetic
    assert len(golden.images) == 35
    files = [file for name in sorted(LABELS) for file in sorted((tmp_path / "pictures" / name).iterdir())]
    spec = load_source(config(tmp_path)).metadata.image
    assert np.array_equal(golden.images, np.stack([prepare_image(file.read_bytes(), spec) for file in files]))
    answers = by_hand(trained_weights(), golden.images).argmax(1)
    truth = np.array([LABELS.index(file.parent.name) for file in files])
    accuracy = json.loads(path.read_text())["accuracy"]
    assert accuracy["before"] == accuracy["after"] == pytest.approx(float((answers == truth).mean()))
    list_models(ListConfig(repository=tmp_path / "models"))
    assert "synthetic" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cats", "dogs"), None),
        (("ant", "beee"), r"beee \(did you mean bee\?\)"),
    ],
    ids=["none is a label", "one is a label"],
)
def test_folders_not_named_as_labels_are_not_used_as_labels(names, message, tmp_path):
    write_images(tmp_path / "pictures", names, per_class=2)
    if message is None:
        source = load_source(config(tmp_path, images=tmp_path / "pictures"))
        assert source.verification.labels is None
        assert any("accuracy is not measured" in remark for remark in source.remarks)
        assert any("only 4 images" in remark for remark in source.remarks)
    else:
        with pytest.raises(SourceError, match=message):
            load_source(config(tmp_path, images=tmp_path / "pictures"))


def test_a_flat_folder_is_taken_without_labels_and_a_damaged_image_is_named(tmp_path):
    write_images(tmp_path, ("flat",), per_class=40)
    verification = load_source(config(tmp_path, images=tmp_path / "flat")).verification
    assert verification.labels is None
    assert len(verification.images) == 40
    assert (
        len(load_source(config(tmp_path, images=tmp_path / "flat", verify_images=9)).verification.images) == 9
    )
    (tmp_path / "flat" / "7.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"1 of 40 images in .* cannot be read \(7\.png"):
        load_source(config(tmp_path, images=tmp_path / "flat"))


def wrapped(weights):
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    raw = {name: tensor + 1 for name, tensor in weights.items()}
    return {
        "state_dict": ({"epoch": 3, "state_dict": weights}, "from 'state_dict'"),
        "averaged": (
            {"model": raw, "model_ema": {"n_averaged": torch.tensor(4), **parallel}},
            "from 'model_ema' in weights.pt rather than model",
        ),
        "data parallel": (parallel, "prefix 'module.'"),
        "compiled": ({f"_orig_mod.{name}": value for name, value in weights.items()}, "prefix '_orig_mod.'"),
        "half": (
            {name: value.half() if value.is_floating_point() else value for name, value in weights.items()},
            "",
        ),
    }


@pytest.mark.parametrize("case", ["state_dict", "averaged", "data parallel", "compiled", "half"])
def test_wrapped_weights_are_unwrapped_and_reported(case, tmp_path):
    payload, said = wrapped(trained_weights())[case]
    torch.save(payload, tmp_path / "weights.pt")
    source = load_source(config(tmp_path))
    assert any(said in remark for remark in source.remarks)
    given = trained_weights()["head.weight"]
    expected = given.half().float() if case == "half" else given
    assert torch.equal(source.network.module.network.state_dict()["head.weight"], expected)


def test_safetensors_are_read_tied_weights_among_them(tmp_path):
    save_file(trained_weights(), tmp_path / "weights.safetensors")
    source = load_source(config(tmp_path, arch="own_networks:Tied", weights=tmp_path / "weights.safetensors"))
    assert torch.equal(source.network.module.network.again.weight, trained_weights()["head.weight"])


def test_factorys_own_module_is_not_changed(tmp_path):
    """Modules come out of a factory in training mode; it is a copy that is put into eval mode."""
    source = load_source(config(tmp_path, arch="own_networks:kept"))
    assert not source.network.module.training
    assert sys.modules["own_networks"].THE_ONE.training


def test_one_changed_weight_publishes_nothing_and_is_named(tmp_path, monkeypatch):
    """The twin: the file is made of other weights than the network that it is compared with."""
    sound_graph = TorchNetwork.to_graph

    def damaged_graph(network):
        damaged = copy.deepcopy(network.module)
        with torch.no_grad():
            damaged.network.head.bias[2] += 0.01
        return sound_graph(TorchNetwork(damaged, network.image_shape))

    monkeypatch.setattr(TorchNetwork, "to_graph", damaged_graph)
    with pytest.raises(ParityError, match=r"differ by up to 0\.01"):
        export_model(config(tmp_path))
    assert not published(tmp_path)


def test_weights_read_are_released_before_the_network_is_copied(tmp_path, monkeypatch):
    """A large network would be in memory three times."""
    read, copied = custom_network.read_weights, custom_network._for_inference
    held: list[weakref.ref[torch.Tensor]] = []

    def recorded(path: Path) -> Weights:
        weights = read(path)
        held.extend(weakref.ref(tensor) for tensor in weights.tensors.values())
        return weights

    def checked(network: nn.Module) -> Any:
        gc.collect()
        assert held
        assert not [tensor for tensor in held if tensor() is not None]
        return copied(network)

    monkeypatch.setattr(custom_network, "read_weights", recorded)
    monkeypatch.setattr(custom_network, "_for_inference", checked)
    load_source(config(tmp_path))


def test_two_exports_give_the_same_bytes(tmp_path):
    for _ in range(2):
        export_model(config(tmp_path, skip_same=False))
    first, second = (read_artifact(path.parent) for path in published(tmp_path))
    assert first.model == second.model
    assert np.array_equal(first.golden.images, second.golden.images)


def bad_weights(weights):
    bias = weights["head.bias"]
    renamed = {name.replace("head.", "classifier.head."): value for name, value in weights.items()}
    return {
        "missing": (
            {name: value for name, value in weights.items() if name != "conv.weight"},
            r"1 of 8 weights differ: missing conv\.weight",
        ),
        "extra": (weights | {"tail.bias": bias}, r"not in the network tail\.bias"),
        "renamed": (renamed, r"missing head\.weight \(the file has classifier\.head\.weight\)"),
        "shape": (
            weights | {"head.bias": bias[:3]},
            r"head\.bias is \[3\] in the file and \[5\] in the network",
        ),
        "nan": (weights | {"head.bias": bias * float("nan")}, r"weights 'head\.bias' hold NaN"),
        "another network's": (
            {"body.0.weight": bias},
            r"missing conv\.weight, norm\.weight, norm\.bias and 4 more",
        ),
        "no tensors": ({"epoch": 3}, "is not a state dict: it has 'epoch'"),
        "empty": ({}, "it has nothing in it"),
        "a tensor": (bias, "holds a Tensor"),
        "a checkpoint of ours": ({"format": "foldserve.checkpoint"}, "export it with foldserve export"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "extra",
        "renamed",
        "shape",
        "nan",
        "another network's",
        "no tensors",
        "empty",
        "a tensor",
        "a checkpoint of ours",
    ],
)
def test_weights_that_are_not_exactly_the_networks_are_refused(case, tmp_path):
    payload, message = bad_weights(trained_weights())[case]
    torch.save(payload, tmp_path / "weights.pt")
    with pytest.raises(SourceError, match=message):
        load_source(config(tmp_path))


def test_weights_of_a_pickled_module_are_read_without_running_its_code(tmp_path):
    module = sys.modules["own_networks"].Net()
    module.load_state_dict(trained_weights())
    torch.save(module, tmp_path / "weights.pt")
    source = load_source(config(tmp_path))
    assert torch.equal(source.network.module.network.head.weight, trained_weights()["head.weight"])
    assert any("a pickled own_networks.Net, none of whose code was run" in said for said in source.remarks)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_damaged_and_absent_weights_are_refused(name, tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        load_source(config(tmp_path, weights=tmp_path / "nothing" / name))
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(SourceError, match="damaged"):
        load_source(config(tmp_path, weights=tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ant\nbee\ncicada\n", "has 3 names, but the network outputs 5 classes"),
        ("ant\n\nbee\n", "line 2 is empty"),
        ("ant\nbee\nant\n", "'ant' is in line 1 and in line 3"),
        ("", "is empty"),
        (b"ant\nb\xe9e\n", "not UTF-8: see line 2"),
        ("ant\nbee\n".encode("utf-16"), "is UTF-16"),
        ("ant\nb\x07ee\n", "line 2 holds control characters"),
    ],
    ids=["wrong count", "empty line", "twice", "empty", "latin-1", "utf-16", "control"],
)
def test_labels_that_do_not_fit_are_refused(content, message, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SourceError, match=message):
        load_source(config(tmp_path))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_labels_with_any_line_ending_or_bom_are_read(ending, tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf" + ending.join((*LABELS, "")).encode())
    assert load_source(config(tmp_path)).metadata.labels == LABELS


def test_missing_labels_are_asked_for_with_their_number(tmp_path):
    with pytest.raises(SourceError, match=r"--labels FILE is needed .* outputs 5 classes"):
        load_source(config(tmp_path, labels=None))
    with pytest.raises(SourceError, match=r"--labels FILE is needed .* is built for one class per name"):
        load_source(config(tmp_path, labels=None, arch="own_networks:sized"))


def test_too_few_labels_for_a_factory_that_asks_for_their_number(tmp_path):
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    with pytest.raises(
        SourceError, match=r"\(built for 2 classes, one per label\).*head\.bias is \[5\] in the file"
    ):
        load_source(config(tmp_path, arch="own_networks:sized"))


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("Random", SourceError, "differ by up to .* from call to call, .* something in it is random"),
        ("Noisy", SourceError, "differ by up to .* from call to call"),
        ("Pair", SourceError, "outputs a tuple; expected one tensor"),
        ("Mapping", SourceError, r"ends in a choice of classes \(argmax\): its outputs are not logits"),
        ("Map", SourceError, r"tensor of shape \[2, 8, 16, 16\]"),
        ("Branching", TraceError, "cannot be traced"),
        ("Unsupported", TraceError, "cannot be converted to ONNX"),
        ("nothing", ModelError, "has no 'nothing'"),
    ],
)
def test_networks_that_cannot_be_served_are_refused(factory, error, message, tmp_path):
    with pytest.raises(error, match=message) as raised:
        export_model(config(tmp_path, arch=f"own_networks:{factory}"))
    assert "\n" not in str(raised.value)
    assert not published(tmp_path)


def test_batch_norm_without_running_statistics_is_refused(tmp_path):
    weights = {name: value for name, value in trained_weights().items() if ".running" not in name}
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(FoldError, match="statistics of the current batch"):
        export_model(config(tmp_path, arch="own_networks:OwnStatistics"))


def test_network_that_asks_for_float32_is_verified_in_float64(tmp_path, capsys):
    export_model(config(tmp_path, arch="own_networks:Single"))
    assert "no float64 reference" not in capsys.readouterr().out
    (path,) = published(tmp_path)
    comparisons = json.loads(path.read_text())["parity"]["comparisons"]
    assert all(comparison["max_abs_err_float64"] < 1e-4 for comparison in comparisons)


def test_tensors_that_no_cast_reaches_are_computed_in_float64(tmp_path):
    export_model(config(tmp_path, arch="own_networks:Plain"))
    (path,) = published(tmp_path)
    assert json.loads(path.read_text())["parity"]["referee"] == "float64"


def test_network_that_cannot_run_in_float64_is_verified_without_it(tmp_path, capsys):
    export_model(config(tmp_path, arch="own_networks:Float32Only"))
    assert "no float64 reference" in capsys.readouterr().out
    (path,) = published(tmp_path)
    parity = json.loads(path.read_text())["parity"]
    assert parity["referee"].startswith("none")
    assert parity["comparisons"][0]["max_abs_err_float64"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": None}, "starts with random weights; give the trained ones with --weights"),
        ({"input": None}, "needs --input"),
        ({"arch": None}, "--weights without --arch"),
        ({"arch": None, "weights": None, "labels": None, "input": None}, "nothing to export: give a run"),
        ({"input": "2x16x16"}, "2 channels; expected 1 .grey. or 3 .RGB."),
        ({"input": "16x16x3"}, "the order is channels x height x width"),
        ({"mean": (0.5,)}, "--mean has 1 numbers for 3 channels"),
        ({"resize": 8}, "--resize 8 is less than 16"),
        (
            {"resize": 20, "fit": "pad"},
            "--resize 20 scales the shorter side and crops, and --fit pad is another",
        ),
        ({"output": "logits"}, "--output cannot be used with your own network"),
        ({"source": "model.onnx"}, "--arch, --weights cannot be used with an ONNX file"),
        (
            {"source": "runs"},
            "--weights, --input, --labels, --mean, --std cannot be used with a training run",
        ),
        (
            {"arch": None, "source": "own_networks:net"},
            "to export your own network, give --arch own_networks:net",
        ),
        ({"input": "3x8x8"}, "the network fails on images of 3x8x8: RuntimeError"),
        ({"images": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(settings, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        load_source(config(tmp_path, **settings))


@pytest.mark.parametrize(
    ("settings", "fit", "shorter_side"),
    [
        ({}, "crop", 16),
        ({"fit": "pad"}, "pad", 16),
        ({"fit": "stretch"}, "stretch", 16),
        ({"resize": 20}, "shorter-side", 20),
    ],
)
def test_pictures_of_another_shape_are_fitted_as_asked_for(settings, fit, shorter_side, tmp_path):
    image = load_source(config(tmp_path, **settings)).metadata.image
    assert (image.fit, image.resize_shorter_side) == (fit, shorter_side)


def test_assumed_normalisation_causes_a_warning(tmp_path):
    remarks = load_source(config(tmp_path, mean=None, std=None)).remarks
    assert any("warning: --mean 0 and --std 1 are assumed" in remark for remark in remarks)
    assert not any("assumed" in remark for remark in load_source(config(tmp_path)).remarks)


def test_a_repository_that_cannot_be_written_publishes_nothing(tmp_path):
    with pytest.raises(SourceError, match="/proc/foldserve cannot be written"):
        export_model(config(tmp_path, repository="/proc/foldserve"))
    (tmp_path / "models").write_text("")
    with pytest.raises(SourceError, match="models is a file"):
        export_model(config(tmp_path))
