"""A malformed checkpoint is reported in one clear line: never a traceback, never wrong weights."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldserve.imaging import ImageSpec
from foldserve.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import split_train
from foldserve.training.engine.loop import train_one_epoch
from foldserve.training.errors import CheckpointError, DivergedError, RunError
from foldserve.training.models import create_model
from foldserve.training.run.resuming import resume_run
from foldserve.training.run.run_folder import RunFolder
from foldserve.training.run.run_state import HISTORY_FIELDS, start_run
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.datasets import Dataset, Examples
    from foldserve.training.run.run_state import RunState

ARGS = {"in_channels": 1, "class_count": 3, "height": 28, "width": 28, "batch_norm": True}
OFTEN = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Of every type that such a file can hold, and at the ends of each.
VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 3, 2**70, 0.0, 0.5, -1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "lenet", "caf\udce9", "two\nlines", b"x", [], [1], (), (0.5,), ("x", "y"), {}, {"x": 1}),
    {7: None},
    torch.zeros(()),
    torch.zeros(0),
    torch.tensor([float("nan")]),
    torch.zeros(2, 3),
    torch.zeros(3, dtype=torch.complex64),
    torch.zeros(2, 2).to_sparse(),
    torch.zeros(2, device="meta"),
]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(5)
    return Checkpoint(
        arch="lenet",
        arch_args=ARGS,
        image=ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28),
        mean=(0.25,),
        std=(0.5,),
        labels=("one", "two", "three"),
        dataset="tiny",
        metrics={"epoch": 3, "validation_accuracy": 0.75},
        weights=create_model("lenet", **ARGS).state_dict(),
    )


@pytest.fixture(scope="module")
def payload(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    save_checkpoint(path, checkpoint)
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def build(path: Path, payload: object) -> None:
    """Check that a checkpoint builds, or is refused in one line that names the file or the network."""
    torch.save(payload, path)
    build_saved(path)


def build_saved(path: Path) -> None:
    refused = ""
    try:
        load_checkpoint(path).build()
    except CheckpointError as error:
        refused = str(error)
    assert "\n" not in refused
    refused.encode()
    assert not refused or path.name in refused or "do not make a" in refused


@pytest.mark.parametrize("name", ["weights", "labels", "mean", "image", "arch_args", "metrics", "trainer"])
def test_none_in_a_checkpoint_field_is_named(tmp_path: Path, payload: dict[str, Any], name: str):
    torch.save(payload | {name: None}, tmp_path / "best.pt")
    if name == "trainer":
        load_checkpoint(tmp_path)
        return
    with pytest.raises(CheckpointError, match=rf"best\.pt is malformed: {name}: Input should be a valid"):
        load_checkpoint(tmp_path)


def test_a_missing_checkpoint_field_is_named(tmp_path: Path, payload: dict[str, Any]):
    torch.save({name: value for name, value in payload.items() if name != "std"}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="malformed: std: Field required"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_without_a_fingerprint_loads(tmp_path: Path, payload: dict[str, Any]):
    torch.save(
        {name: value for name, value in payload.items() if name != "fingerprint"}, tmp_path / "best.pt"
    )
    assert load_checkpoint(tmp_path).fingerprint == ""


@pytest.mark.parametrize("name", [*Checkpoint.__dataclass_fields__, "format", "schema"])
def test_any_value_in_any_checkpoint_field_is_refused_or_usable(
    tmp_path: Path, payload: dict[str, Any], name: str
):
    for value in VALUES:
        build(tmp_path / "best.pt", payload | {name: value})


@pytest.mark.parametrize("name", ["arch_args", "image", "metrics", "weights", "mean", "std", "labels"])
def test_any_value_within_any_checkpoint_field_is_refused_or_usable(
    tmp_path: Path, payload: dict[str, Any], name: str
):
    """One entry within a field is replaced, removed, or repeated under another name."""
    there = payload[name]
    if isinstance(there, tuple):
        changed: list[Any] = [(value, *there[1:]) for value in VALUES]
    else:
        keys = sorted(there)[:6]
        changed = [there | {key: value} for key in keys for value in VALUES]
        changed += [{other: there[other] for other in there if other != key} for key in keys]
        changed += [there | {f"{keys[0]} too": there[keys[0]]}, there | {7: there[keys[0]]}]
    for value in changed:
        build(tmp_path / "best.pt", payload | {name: value})


@pytest.mark.parametrize("value", [2**62, 10**6, -1, float("nan"), 1e300])
@pytest.mark.parametrize("name", ["width_factor", "height", "class_count", "depth", "dropout"])
def test_unreasonable_network_arguments_allocate_no_memory(
    tmp_path: Path, payload: dict[str, Any], name: str, value: float, monkeypatch: pytest.MonkeyPatch
):
    devices = []

    def create(arch: str, **arch_args: Any) -> torch.nn.Module:
        devices.append(torch.get_default_device().type)
        return create_model(arch, **arch_args)

    monkeypatch.setattr("foldserve.training.checkpoint.create_model", create)
    arch = "resnet" if name in {"width_factor", "depth"} else "lenet"
    arch_args = payload["arch_args"] | {name: value}
    torch.save(payload | {"arch": arch, "arch_args": arch_args}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"malformed|do not make a"):
        load_checkpoint(tmp_path).build()
    assert set(devices) <= {"meta"}


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.int64, torch.complex64], ids=str)
def test_weights_of_another_dtype_are_refused(checkpoint: Checkpoint, kind: torch.dtype):
    name = "classifier.5.weight"
    weights = checkpoint.weights | {name: checkpoint.weights[name].to(kind)}
    with pytest.raises(CheckpointError, match=rf"{name} is {kind}, .* expected dense torch.float32"):
        replace(checkpoint, weights=weights).build()


def test_weights_without_values_are_refused(checkpoint: Checkpoint):
    name = "classifier.5.weight"
    for value in (checkpoint.weights[name].to("meta"), checkpoint.weights[name].to_sparse()):
        with pytest.raises(CheckpointError, match=f"{name} is torch.float32, .*; expected dense"):
            replace(checkpoint, weights=checkpoint.weights | {name: value}).build()


@OFTEN
@given(data=st.data())
def test_damaged_checkpoint_bytes_are_refused_or_change_nothing(
    tmp_path: Path, checkpoint: Checkpoint, data: st.DataObject
):
    """No flipped bit ends up in a weight."""
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content), len(content) // 2]))])
    build_saved(path)
    with suppress(CheckpointError):
        loaded = load_checkpoint(path)
        assert all(torch.equal(loaded.weights[name], value) for name, value in checkpoint.weights.items())


@OFTEN
@given(data=st.data())
def test_a_damaged_pickle_is_refused_or_usable(tmp_path: Path, checkpoint: Checkpoint, data: st.DataObject):
    """The checksums are right, as in a file made on purpose, so torch's reader must notice."""
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(buffer, "w") as bad:
        for name in good.namelist():
            content = bytearray(good.read(name))
            if name.endswith("data.pkl"):
                for _ in range(data.draw(st.integers(1, 4))):
                    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            bad.writestr(name, bytes(content))
    path.write_bytes(buffer.getvalue())
    build_saved(path)


def start(config: TrainConfig, dataset: Dataset) -> tuple[RunState, Examples]:
    training, _ = split_train(dataset, config.validation_count)
    return start_run(config, dataset, training, torch.device("cpu")), training


def trained_half_an_epoch(config: TrainConfig, dataset: Dataset) -> RunState:
    """Return the checkpoint of a run within its second epoch."""
    state, training = start(config, dataset)
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    progress = train_one_epoch(state.trainer, training, lambda _: None)
    state.history.append(dict.fromkeys(HISTORY_FIELDS, 0.5) | {"epoch": 1, "train_loss": progress.loss})
    with pytest.raises(KeyboardInterrupt):
        train_one_epoch(state.trainer, training, lambda _: None, stop)
    return state


def changed_within(there: Any, data: st.DataObject) -> Any:
    """Return ``there`` with one entry at any depth replaced or removed."""
    if not isinstance(there, dict | list) or not there or data.draw(st.integers(0, 3)) == 0:
        return data.draw(st.sampled_from(VALUES))
    key = data.draw(st.sampled_from(sorted(there) if isinstance(there, dict) else range(len(there))))
    changed = there.copy()
    if data.draw(st.integers(0, 5)) == 0:
        del changed[key]
    else:
        changed[key] = changed_within(there[key], data)
    return changed


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_resumes_from_any_trainer_state_or_reports_why_not(
    tiny: Dataset, tmp_path: Path, optimizer: str
):
    config = TrainConfig(
        dataset="tiny", run_dir=tmp_path, epochs=3, batch_size=32, device="cpu", optimizer=optimizer, lr=1e-3
    )
    good = trained_half_an_epoch(config, tiny).to_checkpoint(resumable=True)

    @OFTEN
    @given(data=st.data())
    def goes_on_or_says_why_not(data: st.DataObject) -> None:
        save_checkpoint(tmp_path / "last.pt", replace(good, trainer=changed_within(good.trainer, data)))
        state, training = start(config, tiny)
        refused = ""
        try:
            resume_run(state, RunFolder(tmp_path))
            train_one_epoch(state.trainer, training, lambda _: None)
        except RunError as error:
            refused = str(error)
        except DivergedError:
            pass  # from moments that are not numbers no numbers come
        assert "\n" not in refused
        assert not refused or refused.startswith("the run cannot be resumed: ")

    goes_on_or_says_why_not()


def test_a_best_checkpoint_of_other_data_is_reported(tiny_config: TrainConfig, tiny: Dataset):
    train(tiny_config, LineTerminal())
    best = tiny_config.run_dir / "best.pt"
    good = load_checkpoint(best)
    unjudged = {name: value for name, value in good.metrics.items() if not name.startswith("test_")}
    for wrong, message in (
        (replace(good, labels=tiny.labels[::-1], metrics=unjudged), "is not of this run: .* has labels"),
        (replace(good, metrics={"epoch": 1}), r"best\.pt is malformed: its metrics have no step"),
    ):
        save_checkpoint(best, wrong)
        with pytest.raises(CheckpointError, match=message):
            train(tiny_config, LineTerminal())


def test_a_run_is_not_resumed_with_other_images(tiny_config: TrainConfig, tiny: Dataset):
    """As after corrected labels: counts, statistics and names are all the same."""
    state = trained_half_an_epoch(tiny_config, replace(tiny, fingerprint="before"))
    tiny_config.run_dir.mkdir()
    save_checkpoint(tiny_config.run_dir / "last.pt", state.to_checkpoint(resumable=True))
    state, _ = start(tiny_config, replace(tiny, fingerprint="after"))
    with pytest.raises(RunError, match="the images, or the folders they are in, have changed since it began"):
        resume_run(state, RunFolder(tiny_config.run_dir))
