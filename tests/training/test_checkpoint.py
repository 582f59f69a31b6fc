"""A checkpoint is loaded as it was saved, or refused with a reason; it never runs code."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.imaging import ImageSpec
from foldserve.training import checkpoint as checkpoint_module
from foldserve.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from foldserve.training.errors import CheckpointError
from foldserve.training.models import create_model

if TYPE_CHECKING:
    from pathlib import Path

ARGS = {"in_channels": 1, "class_count": 3, "height": 28, "width": 28, "batch_norm": True}


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(5)
    network = create_model("lenet", **ARGS)
    return Checkpoint(
        arch="lenet",
        arch_args=ARGS,
        image=ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28),
        mean=(0.25,),
        std=(0.5,),
        labels=("eins", "zwei", "drei, ünï"),
        dataset="tiny",
        metrics={"epoch": 3, "validation_accuracy": 0.75},
        weights=network.state_dict(),
        trainer={
            "step": 7,
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []},
        },
    )


def test_checkpoint_fields_survive_saving_and_loading(tmp_path: Path, checkpoint: Checkpoint):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "best.pt")
    for name in ("arch", "arch_args", "image", "mean", "std", "labels", "dataset", "metrics", "ema_weights"):
        assert getattr(loaded, name) == getattr(checkpoint, name), name
    assert loaded.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(loaded.weights[name], value) for name, value in checkpoint.weights.items())
    assert torch.equal(loaded.trainer["optimizer"]["state"][0]["momentum_buffer"], torch.ones(2))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("fashion-mnist", "fashion-mnist"),
        ("/home/a/birds, rare", "birds, rare"),
        ("/home/a/train.csv,/home/b/test.csv", "train.csv,test.csv"),
    ],
)
def test_the_name_of_a_data_set_has_no_folders(checkpoint: Checkpoint, dataset: str, name: str):
    assert replace(checkpoint, dataset=dataset).dataset_name == name


def test_checkpoint_from_before_there_were_two_rules_decodes_in_full(tmp_path: Path, checkpoint: Checkpoint):
    scaled = replace(checkpoint, image=replace(checkpoint.image, decode="scaled"))
    save_checkpoint(tmp_path / "best.pt", scaled)
    assert load_checkpoint(tmp_path).image.decode == "scaled"
    payload = torch.load(tmp_path / "best.pt", weights_only=True)
    del payload["image"]["decode"]
    torch.save(payload, tmp_path / "best.pt")
    assert load_checkpoint(tmp_path).image.decode == "full"


def test_loading_a_folder_loads_its_best_checkpoint(tmp_path: Path, checkpoint: Checkpoint):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    save_checkpoint(tmp_path / "last.pt", replace(checkpoint, metrics={"epoch": 4}))
    assert load_checkpoint(tmp_path).metrics["epoch"] == 3


def test_averaged_weights_are_served_if_there_are_any(checkpoint: Checkpoint):
    averaged = {
        name: value * 0 if value.is_floating_point() else value for name, value in checkpoint.weights.items()
    }
    assert (checkpoint.weights_kind, replace(checkpoint, ema_weights=averaged).weights_kind) == ("raw", "ema")
    assert not replace(checkpoint, ema_weights=averaged).build().network.classifier[-1].weight.any()
    assert torch.equal(
        checkpoint.build().network.classifier[-1].weight, checkpoint.weights["classifier.5.weight"]
    )


def test_the_built_network_is_in_eval_mode_and_takes_pixels(checkpoint: Checkpoint):
    model = checkpoint.build()
    assert not any(module.training for module in model.modules())
    assert model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape == (1, 3)


def test_weights_of_another_network_are_refused(checkpoint: Checkpoint):
    with pytest.raises(CheckpointError, match=r"do not make a lenet: .*size mismatch"):
        replace(checkpoint, arch_args=ARGS | {"class_count": 4}).build()
    with pytest.raises(CheckpointError, match="'lenot' is not known"):
        replace(checkpoint, arch="lenot").build()


def test_a_failed_save_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    before = (tmp_path / "last.pt").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_missing_checkpoint_names_the_expected_files(tmp_path: Path):
    with pytest.raises(
        CheckpointError, match=r"best\.pt does not exist; expected a checkpoint or the --run-dir"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, -1000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, checkpoint: Checkpoint, kept: int):
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"best\.pt is not a checkpoint, or it is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [b"not a checkpoint", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(300)],
    ids=["text", "png", "zeros"],
)
def test_files_that_are_not_checkpoints_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "best.pt")


def test_a_plain_state_dict_is_refused(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is a torch file, but not a checkpoint"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_whole_network_is_refused_in_words_of_our_own(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(
        CheckpointError, match=r"damaged or cut short: it holds objects that would run code"
    ) as refused:
        load_checkpoint(tmp_path / "whole.pt")
    assert "x1b" not in str(refused.value)


def test_a_future_schema_is_refused(tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint_module, "SCHEMA_VERSION", 99)
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="schema 99"):
        load_checkpoint(tmp_path)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_no_code_in_a_file_is_run(tmp_path: Path, save):
    save({"format": "foldserve.checkpoint", "weights": _Touch(tmp_path / "touched")}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "touched").exists()
