"""`foldserve inspect`: what may be named, what it prints, and what it says when it cannot."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from foldserve import cli
from foldserve.artifact.format import ModelMetadata
from foldserve.training.checkpoint import save_checkpoint
from foldserve.training.models import MODELS
from tests.support.graphs import chain
from tests.support.torch_networks import build_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.training.checkpoint import Checkpoint

HEADER = ["layer", "type", "output", "kernel", "stride", "padding", "parameters", "MACs", "field"]
FIRST_ROW = ["features.0.conv", "Conv", "16x28x28", "5x5", "1", "2", "400", "313,600", "5"]


def inspect(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["inspect", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_network_name_prints_one_row_per_layer_and_the_totals(capsys: pytest.CaptureFixture[str]):
    status, out, err = inspect(capsys, "lenet")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0] == "lenet, image 1x28x28"
    assert lines[1].split() == HEADER
    assert lines[2].split() == FIRST_ROW
    assert "parameters 88,654" in lines
    assert "MACs 1,668,696 per image" in lines
    assert "receptive field of the convolutions 32x32" in lines


def test_the_widest_table_fits_100_columns(capsys: pytest.CaptureFixture[str]):
    status, out, _ = inspect(capsys, "resnet", "--input", "3x224x224", "--width", "10", "--depth", "8")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100


def test_input_classes_width_depth_and_batch_norm_reach_the_network(capsys: pytest.CaptureFixture[str]):
    words = ["--input", "3x32x32", "--classes", "7", "--width", "0.5", "--depth", "8", "--no-batch-norm"]
    status, out, _ = inspect(capsys, "resnet", *words)
    rows = [line.split() for line in out.splitlines()]
    assert status == 0
    assert rows[2][:3] == ["stem.0.conv", "Conv", "8x32x32"]
    assert rows[2][6] == str(3 * 8 * 9 + 8)
    assert ["classifier.3", "Linear", "7", str(32 * 7 + 7), str(32 * 7), "53"] in rows
    assert "BatchNorm" not in out


def test_a_run_is_shown_by_its_best_checkpoint(capsys: pytest.CaptureFixture[str], run_dir: Path):
    status, out, _ = inspect(capsys, str(run_dir))
    assert status == 0
    assert out.startswith("lenet from ")
    assert "parameters 88,654" in out


def test_a_model_version_is_shown_from_its_file_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Checkpoint
):
    metadata = ModelMetadata(checkpoint.labels, checkpoint.mean, checkpoint.std, checkpoint.image)
    file = tmp_path / "model.onnx"
    file.write_bytes(build_network(checkpoint.build().network, metadata).content)
    status, out, _ = inspect(capsys, str(tmp_path))
    assert status == 0
    assert "MACs 1,668,696 per image" in out
    assert "BatchNorm" not in out
    # The bias that took batch norm's place: 400 weights and 16 biases.
    folded = [*FIRST_ROW[:6], "416", *FIRST_ROW[7:]]
    assert folded in [line.split() for line in out.splitlines()]
    assert inspect(capsys, str(file))[1].splitlines()[1:] == out.splitlines()[1:]


@pytest.fixture
def own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a network in the current folder; nothing of it stays behind."""
    (tmp_path / "inspected_networks.py").write_text(
        "from torch import nn\n"
        "def tiny(in_channels, class_count):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(4, class_count))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    name = "inspected_networks:tiny"
    yield name
    MODELS.pop(name, None)
    sys.modules.pop("inspected_networks", None)


def test_custom_network_is_shown(capsys: pytest.CaptureFixture[str], own_name: str):
    status, out, err = inspect(capsys, own_name, "--input", "3x8x8", "--classes", "2")
    assert (status, err) == (0, "")
    assert f"parameters {3 * 4 * 9 + 4 + 4 * 2 + 2:,}" in out


def test_checkpoint_of_a_custom_network_runs_its_code_only_if_named(
    capsys: pytest.CaptureFixture[str], checkpoint: Checkpoint, own_name: str, tmp_path: Path
):
    weights = {"0.weight": [4, 1, 3, 3], "0.bias": [4], "3.weight": [10, 4], "3.bias": [10]}
    tensors = {name: torch.zeros(shape) for name, shape in weights.items()}
    save_checkpoint(tmp_path / "best.pt", replace(checkpoint, arch=own_name, weights=tensors))
    status, _, err = inspect(capsys, str(tmp_path))
    assert status == 1
    assert f"name it: --arch {own_name}" in err
    assert "inspected_networks" not in sys.modules
    status, out, _ = inspect(capsys, str(tmp_path), "--arch", own_name)
    assert status == 0
    assert "parameters 90" in out


@pytest.fixture
def free_file(tmp_path: Path) -> Path:
    """A file that leaves height and width open."""
    file = tmp_path / "free.onnx"
    onnx.save(chain(("Conv", {"w": [4, 3, 3, 3]}, {}), shape=(3, "H", "W")), file)
    return file


def test_a_file_of_free_size_takes_its_input_from_the_flag(
    capsys: pytest.CaptureFixture[str], free_file: Path
):
    status, out, _ = inspect(capsys, str(free_file), "--input", "3x20x30")
    assert status == 0
    assert "4x18x28" in out


def test_a_file_of_free_size_asks_for_an_input(capsys: pytest.CaptureFixture[str], free_file: Path):
    status, _, err = inspect(capsys, str(free_file))
    assert status == 1
    assert "give it, such as --input 3x224x224" in err


def test_an_input_that_the_file_does_not_take_is_refused(capsys: pytest.CaptureFixture[str], free_file: Path):
    status, _, err = inspect(capsys, str(free_file), "--input", "1x20x20")
    assert status == 1
    assert "--input 1x20x20" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["lenett"], "neither a network (alexnet, lenet, resnet", id="misspelt name"),
        pytest.param(["nothing.onnx"], "nothing.onnx does not exist", id="no such file"),
        pytest.param(["lenet", "--depth", "8"], "depth", id="setting the network lacks"),
        pytest.param(["lenet", "--input", "1x9x9"], "not 9x9", id="image too small"),
        pytest.param(["no_such_module:f"], "no module 'no_such_module'", id="own without a module"),
    ],
)
def test_unreadable_targets_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    status, out, err = inspect(capsys, *words)
    assert (status, out) == (1, "")
    assert err.startswith("foldserve inspect: ")
    assert message in err
    assert err.count("\n") == 1


def test_damaged_file_is_reported_in_one_line(capsys: pytest.CaptureFixture[str], free_file: Path):
    free_file.write_bytes(free_file.read_bytes()[:-50])
    status, _, err = inspect(capsys, str(free_file))
    assert status == 1
    assert "is not an ONNX model, or it is damaged" in err
    assert err.count("\n") == 1


def test_settings_of_a_named_network_are_refused_for_a_run(capsys: pytest.CaptureFixture[str], run_dir: Path):
    status, _, err = inspect(capsys, str(run_dir), "--classes", "3", "--no-batch-norm")
    assert status == 1
    assert "--classes, --no-batch-norm: only for a network given by name" in err


def test_an_input_that_the_checkpoint_does_not_take_is_refused(
    capsys: pytest.CaptureFixture[str], run_dir: Path
):
    status, _, err = inspect(capsys, str(run_dir), "--input", "3x28x28")
    assert status == 1
    assert "takes images of 1x28x28" in err


@pytest.mark.parametrize("text", ["28", "1x28", "0x28x28", "1x28x28x1", "axbxc"])
def test_malformed_input_shapes_are_refused(capsys: pytest.CaptureFixture[str], text: str):
    status, _, err = inspect(capsys, "lenet", "--input", text)
    assert status == 2
    assert "expected channels x height x width, such as 3x224x224" in err
