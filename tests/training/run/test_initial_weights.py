"""`train --init`: what fits is taken and said, and the head is replaced if the classes differ."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from foldserve.training.checkpoint import load_checkpoint, save_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import registry, split_train
from foldserve.training.errors import CheckpointError, RunError
from foldserve.training.models import create_model
from foldserve.training.run import finishing
from foldserve.training.run.initial_weights import read_initial_weights
from foldserve.training.run.run_state import RunState, start_from, start_run
from foldserve.training.run.train import train
from tests.support.image_folders import write_classes
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foldserve.training.datasets import Dataset

HEAD = ("classifier.5.weight", "classifier.5.bias")
SHAPE = {"in_channels": 1, "height": 28, "width": 28, "class_count": 4}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "write_report", lambda *_, **__: None)


def started(config: TrainConfig, dataset: Dataset, init: Path) -> tuple[RunState, list[str]]:
    training, _ = split_train(dataset, config.validation_count)
    state = start_run(config, dataset, training, torch.device("cpu"))
    return state, start_from(state, read_initial_weights(init))


def changed(config: TrainConfig, **settings: object) -> TrainConfig:
    return TrainConfig(**config.model_dump() | settings)


@pytest.fixture
def first_run(tiny_config: TrainConfig, tmp_path: Path) -> Path:
    train(changed(tiny_config, run_dir=tmp_path / "first", epochs=1, ema_decay=0.9), LineTerminal())
    return tmp_path / "first"


def test_the_weights_of_a_run_are_taken_whole(tiny: Dataset, tiny_config: TrainConfig, first_run: Path):
    given = load_checkpoint(first_run)
    assert given.ema_weights is not None
    for path in (first_run, first_run / "best.pt"):
        state, lines = started(tiny_config, tiny, path)
        own = state.trainer.model.network.state_dict()
        assert all(torch.equal(own[name], value) for name, value in given.ema_weights.items())
        (line,) = lines
        assert line == f"starting from {path} (lenet, ema weights): 88,144 of 88,144 parameters taken"


def test_the_head_is_new_if_the_classes_differ(tiny: Dataset, tiny_config: TrainConfig, first_run: Path):
    given = load_checkpoint(first_run)
    assert given.ema_weights is not None
    for labels, why in (
        (("north", "east", "south", "up", "west"), "4 classes in the file, 5 here"),
        (("north", "south", "east", "west"), "other classes, such as 'east' in the file and 'south' here"),
    ):
        other = replace(tiny, labels=labels)
        fresh = start_run(tiny_config, other, split_train(other, 40)[0], torch.device("cpu"))
        state, lines = started(tiny_config, other, first_run)
        own, drawn = (each.trainer.model.network.state_dict() for each in (state, fresh))
        for name, value in own.items():
            expected = drawn[name] if name in HEAD else given.ema_weights[name]
            assert torch.equal(value, expected), name
        assert lines[1] == f"new, as before any training: classifier.5 (the head: {why})"
        assert not state.initial & set(HEAD)


def test_a_layer_of_another_shape_is_new_and_the_others_are_taken(
    tiny: Dataset, tiny_config: TrainConfig, tmp_path: Path
):
    """The file is of 32x32 pixels: the first linear layer differs, the convolutions do not."""
    network = create_model("lenet", **SHAPE | {"height": 32, "width": 32})
    weights = network.state_dict() | {"extra.weight": torch.ones(1)}
    torch.save({f"module.{name}": value.half() for name, value in weights.items()}, tmp_path / "w.pt")
    state, lines = started(tiny_config, tiny, tmp_path / "w.pt")
    own = state.trainer.model.network.state_dict()
    assert torch.equal(own["features.0.conv.weight"], weights["features.0.conv.weight"].half().float())
    assert not torch.equal(own["classifier.2.weight"], weights["classifier.2.weight"][:, :84])
    assert lines[1:] == [
        "new, as before any training: classifier.2 ([84, 336] in the file, [84, 84] in the network)",
        "in the file, not in the network: extra.weight",
    ]
    assert "removed 'module.' from the names" in lines[0]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(
            lambda path: torch.save(create_model("resnet", **SHAPE).state_dict(), path),
            r"nothing in .*w\.pt fits lenet: it has stem\.0\.conv\.weight \[16, 1, 3, 3\], .* more; "
            r"the network has features\.0\.conv\.weight \[16, 1, 5, 5\], .*; give weights of the same",
            id="another network",
        ),
        pytest.param(
            lambda path: torch.save(
                {"classifier.5.weight": torch.ones(4, 84), "classifier.5.bias": torch.ones(4)}, path
            ),
            r"nothing in .* fits lenet",
            id="nothing but a head",
        ),
        pytest.param(
            lambda path: torch.save(
                {"a.num_batches_tracked": torch.tensor(1), "b.weight": torch.ones(2)}, path
            ),
            r"fits lenet: it has b\.weight \[2\]; the network has",
            id="a counter",
        ),
        pytest.param(
            lambda path: torch.save({"features.0.conv.weight": torch.full((16, 1, 5, 5), math.nan)}, path),
            r"the weights 'features\.0\.conv\.weight' hold NaN or infinite values; take an earlier",
            id="NaN",
        ),
        pytest.param(
            lambda _: None, r"--init .*w\.pt does not exist; expected a run folder", id="nothing there"
        ),
        pytest.param(
            lambda path: path.mkdir(), r"best\.pt does not exist; expected a checkpoint or the", id="no run"
        ),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(
    tiny_config: TrainConfig, tmp_path: Path, write: Callable[[Path], object], message: str
):
    write(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message) as refused:
        train(changed(tiny_config, init=tmp_path / "w.pt"), LineTerminal())
    assert "\n" not in str(refused.value)
    assert not list(tiny_config.run_dir.glob("[!.]*")), "the folder can be used once the weights are right"


def test_nan_in_the_weights_of_a_run_is_refused(tiny_config: TrainConfig, first_run: Path):
    best = load_checkpoint(first_run)
    assert best.ema_weights is not None
    best.ema_weights["classifier.2.weight"][0, 0] = math.nan
    save_checkpoint(first_run / "best.pt", best)
    with pytest.raises(CheckpointError, match=r"'classifier\.2\.weight' hold NaN or infinite"):
        train(changed(tiny_config, init=first_run), LineTerminal())


def test_frozen_layers_do_not_change_and_the_others_do(
    tiny_config: TrainConfig, first_run: Path, tmp_path: Path
):
    given = load_checkpoint(first_run).ema_weights
    assert given is not None
    config = changed(tiny_config, init=first_run, freeze=("features",), epochs=1)
    train(config, LineTerminal())
    weights = load_checkpoint(config.run_dir / "last.pt").weights
    for name, value in weights.items():
        assert torch.equal(value, given[name]) == name.startswith("features."), name


def test_what_a_run_froze_is_said_in_plain_words(tiny_config: TrainConfig, first_run: Path):
    config = changed(tiny_config, init=first_run, freeze=("features.0", "*.norm"))
    train(config, LineTerminal(), judge=False)
    for nothing in ((), ("",)):
        with pytest.raises(
            RunError, match=r"freeze is features\.0, \*\.norm there and none here; use another"
        ):
            train(changed(config, freeze=nothing, resume=True), LineTerminal())


def test_a_frozen_layer_that_stays_new_is_refused(tiny: Dataset, tiny_config: TrainConfig, first_run: Path):
    other = replace(tiny, labels=("a", "b", "c", "d"))
    with pytest.raises(
        CheckpointError, match=r"--freeze classifier freezes classifier\.5\.bias, which .* does not give"
    ):
        started(changed(tiny_config, init=first_run, freeze=("classifier",)), other, first_run)


def test_taken_weights_learn_at_their_own_rate(tiny: Dataset, tiny_config: TrainConfig, first_run: Path):
    other = replace(tiny, labels=("a", "b", "c", "d"))
    config = changed(tiny_config, init=first_run, backbone_lr_scale=0.1)
    state, _ = started(config, other, first_run)
    network, optimizer = state.trainer.model.network, state.trainer.optimizer
    names = {id(value): name for name, value in network.named_parameters()}
    scales = {
        names[id(value)]: group.get("lr_scale", 1.0)
        for group in optimizer.param_groups
        for value in group["params"]
    }
    assert scales == {name: 1.0 if name in HEAD else 0.1 for name, _ in network.named_parameters()}
    assert len(optimizer.param_groups[0]["params"]) == 1, "the rate that is shown is that of new weights"


@pytest.mark.parametrize("prefix", ["model.", "network.", "model.module.", "a.b.c."])
def test_a_prefix_of_all_names_is_removed(
    tiny: Dataset, tiny_config: TrainConfig, tmp_path: Path, prefix: str
):
    network = create_model("lenet", **SHAPE)
    weights = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    save_file(weights | {"loss.weight": torch.ones(4)}, tmp_path / "w.safetensors")
    state, lines = started(tiny_config, tiny, tmp_path / "w.safetensors")
    own = state.trainer.model.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in network.state_dict().items())
    count = len(weights)
    assert lines[0].endswith(f"taken; removed {prefix!r} from the names of {count} of {count + 1} weights")
    assert lines[1:] == ["in the file, not in the network: loss.weight"]


@pytest.mark.parametrize(("worse", "better"), [("old.", ""), ("old.", "new.")])
def test_of_several_prefixes_the_one_that_fits_best_is_removed(
    tiny: Dataset, tiny_config: TrainConfig, tmp_path: Path, worse: str, better: str
):
    """Of the worse network the first layer does not fit. Names that fit as they are stay so."""
    other, whole = (create_model("lenet", **SHAPE | {"in_channels": count}).state_dict() for count in (3, 1))
    weights = {f"{worse}{name}": value for name, value in other.items()}
    torch.save(weights | {f"{better}{name}": value for name, value in whole.items()}, tmp_path / "w.pt")
    state, lines = started(tiny_config, tiny, tmp_path / "w.pt")
    own = state.trainer.model.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in whole.items())
    assert (f"removed {better!r} from the names" in lines[0]) == bool(better)
    assert lines[1].startswith(f"in the file, not in the network: {worse}features.0.conv.weight")


@pytest.mark.parametrize("name", ["", "best.pt"])
def test_on_a_folder_the_network_and_the_input_are_those_of_the_weights(
    tiny_config: TrainConfig, tmp_path: Path, name: str
):
    """The twin: without them, the rule takes a resnet. An interrupted run goes on without them."""
    train(changed(tiny_config, run_dir=tmp_path / "first", epochs=1, activation="sigmoid"), LineTerminal())
    pictures = write_classes(tmp_path / "pictures", per_class=20, size=(40, 40))
    settings = {"dataset": str(pictures), "epochs": 2, "device": "cpu"}
    given = TrainConfig.model_validate(
        {**settings, "init": tmp_path / "first" / name, "run_dir": tmp_path / "tuned"}
    )
    terminal = LineTerminal("epoch 2/2")
    with pytest.raises(KeyboardInterrupt):
        train(given, terminal)
    lines = "\n".join(terminal.lines)
    assert "(lenet, raw weights) has it: arch lenet, " in lines
    assert "images are used as grey, 28x28 pixels" in lines
    assert "training lenet (" in lines
    there = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert (there["arch"], there["image_size"], there["activation"]) == ("lenet", 28, "sigmoid")
    shutil.rmtree(tmp_path / "first")
    again = LineTerminal(f"resuming {given.run_dir} in epoch 2 of 2")
    with pytest.raises(KeyboardInterrupt):
        train(given, again)
    twin = LineTerminal("training resnet")
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig.model_validate({**settings, "run_dir": tmp_path / "twin"}), twin)


def test_weights_of_another_network_than_the_one_asked_for_say_which(
    tiny_config: TrainConfig, first_run: Path
):
    with pytest.raises(
        CheckpointError, match=r", a lenet, fits resnet: .*; add --arch lenet, or leave out --init"
    ):
        train(changed(tiny_config, arch="resnet", init=first_run), LineTerminal())


@pytest.mark.parametrize("stop_at", ["epoch 1/3", "epoch 2/3"])
def test_an_interrupted_run_needs_its_first_weights_no_longer(
    tiny: Dataset,
    tiny_config: TrainConfig,
    first_run: Path,
    stop_at: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """After its first checkpoint; rates and frozen layers stay as they were."""
    monkeypatch.setitem(registry.DATASETS, "tiny", lambda *_: replace(tiny, labels=("a", "b", "c", "d")))
    settings = {
        "init": first_run,
        "freeze": ("features.0",),
        "backbone_lr_scale": 0.1,
        "optimizer": "adamw",
        "lr": 1e-3,
    }
    whole = changed(tiny_config, **settings, run_dir=first_run.with_name("whole"))
    broken = changed(whole, run_dir=first_run.with_name("broken"), checkpoint_every=0.0)
    train(whole, LineTerminal())
    with pytest.raises(KeyboardInterrupt):
        train(broken, LineTerminal(stop_at))
    (first_run / "best.pt").unlink()
    train(broken, LineTerminal())
    one, two = (load_checkpoint(folder / "last.pt") for folder in (whole.run_dir, broken.run_dir))
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
