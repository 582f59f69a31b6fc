"""State dicts made elsewhere are read without running code, under plain names, only if they are finite."""

from __future__ import annotations

import math
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from foldserve.training import state_dict_file
from foldserve.training.errors import CheckpointError
from foldserve.training.state_dict_file import StateDict, read_state_dict, with_plain_names

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = {"stem.weight": torch.ones(2, 3), "stem.bias": torch.zeros(2)}


def read_plain(path: Path) -> StateDict:
    return with_plain_names(read_state_dict(path), path)


@pytest.mark.parametrize(
    ("payload", "remark"),
    [
        pytest.param(PLAIN, "", id="plain"),
        pytest.param({"state_dict": PLAIN, "epoch": 3}, "from 'state_dict'", id="wrapped"),
        pytest.param({"model": PLAIN, "ema": {}}, "from 'model'", id="an empty average"),
        pytest.param({"ckpt": 1, "model": {"state_dict": PLAIN, "a": 1}}, "'state_dict'", id="wrapped twice"),
        pytest.param(
            {"model": {"stem.weight": torch.zeros(2, 3)}, "model_ema": PLAIN},
            "rather than model",
            id="average first",
        ),
        pytest.param(
            {f"module.{name}": value for name, value in PLAIN.items()}, "'module.'", id="DataParallel"
        ),
        pytest.param(
            {f"_orig_mod.module.{name}": value for name, value in PLAIN.items()},
            "'_orig_mod.'",
            id="compiled",
        ),
        pytest.param(
            {"stem._orig_mod.weight": PLAIN["stem.weight"], "stem.bias": PLAIN["stem.bias"]},
            "'_orig_mod.'",
            id="a part compiled",
        ),
        pytest.param(
            {"n_averaged": torch.tensor(4)} | {f"module.{name}": value for name, value in PLAIN.items()},
            "'module.'",
            id="AveragedModel",
        ),
    ],
)
def test_state_dicts_are_unwrapped_to_plain_names(tmp_path: Path, payload: dict[str, object], remark: str):
    torch.save(payload, tmp_path / "w.pt")
    state = read_plain(tmp_path / "w.pt")
    assert state.tensors.keys() == PLAIN.keys()
    assert all(torch.equal(state.tensors[name], value) for name, value in PLAIN.items())
    assert remark in "; ".join(state.remarks)


def test_safetensors_files_are_read(tmp_path: Path):
    save_file({f"module.{name}": value for name, value in PLAIN.items()}, tmp_path / "w.safetensors")
    assert torch.equal(read_plain(tmp_path / "w.safetensors").tensors["stem.weight"], PLAIN["stem.weight"])


def test_a_pickled_network_is_read_without_its_code(tmp_path: Path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2))
    torch.save({"net": network, "epoch": 3}, tmp_path / "w.pt")
    state = read_plain(tmp_path / "w.pt")
    assert torch.equal(state.tensors["0.weight"], network.state_dict()["0.weight"])
    assert "a pickled torch.nn.modules.container.Sequential" in "; ".join(state.remarks)


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param([1], "holds a list; expected a state dict", id="no dict"),
        pytest.param(
            {"epoch": 1}, "is not a state dict: it has 'epoch'; expected tensors by name", id="no tensors"
        ),
        pytest.param({"a": torch.tensor([1.0, math.nan])}, "the weights 'a' hold NaN", id="NaN"),
        pytest.param({"a": torch.tensor(math.inf)}, "the weights 'a' hold NaN or infinite", id="infinity"),
        pytest.param({"a": torch.tensor([2.0, -math.inf])}, "the weights 'a' hold NaN", id="minus infinity"),
        pytest.param({"a": torch.tensor([1.0, math.nan]).double()}, "'a' hold NaN", id="float64"),
        pytest.param({"a": torch.tensor([1.0, math.nan]).bfloat16()}, "'a' hold NaN", id="bfloat16"),
        pytest.param({"a": torch.ones(1), "module.a": torch.ones(1)}, "has 'a' twice", id="two networks"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path: Path, payload: object, message: str):
    torch.save(payload, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message) as refused:
        read_plain(tmp_path / "w.pt")
    assert "\n" not in str(refused.value)


def test_code_in_a_file_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"state_dict": _Runs()}, tmp_path / "w.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Runs()))
    for name in ("w.pt", "raw.pt"):
        with pytest.raises(CheckpointError):
            read_plain(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


def test_damaged_and_missing_files_are_reported(tmp_path: Path):
    torch.save(PLAIN, tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-60])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_plain(tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="is not a safetensors file, or it is damaged"):
        read_plain(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_plain(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "it does not begin as one"),
        (b"101 words", "it does not begin as one"),
    ],
)
def test_files_of_another_kind_are_told_in_plain_words(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is not a torch file, or it is .* cut short: {reason}$"):
        read_plain(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_are_too_large_are_not_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state_dict_file, "_MOST_BYTES", 99)
    (tmp_path / name).write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match="has 100 bytes; a file of weights may have 99"):
        read_plain(tmp_path / name)
