"""Choosing the number format of a run, given or automatic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.training.config import TrainConfig
from foldserve.training.engine import precision as precision_module
from foldserve.training.engine.precision import choose_precision, has_native_bf16

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 rdpid\n", True, id="with it"),
        pytest.param("processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni\n", False, id="without it"),
        pytest.param("flags\t\t: avx512_bf16x\nbugs\t\t: avx512_bf16\n", False, id="not among the flags"),
    ],
)
def test_native_bf16_is_read_from_the_flags_of_the_cpu(tmp_path: Path, facts: str, expected: bool):
    (tmp_path / "cpuinfo").write_text(facts)
    assert has_native_bf16(tmp_path / "cpuinfo") is expected


def test_a_cpu_without_flags_has_no_native_bf16(tmp_path: Path):
    assert not has_native_bf16(tmp_path / "missing")


@pytest.mark.parametrize(
    ("arch", "has_bf16", "asked", "expected"),
    [
        pytest.param("lenet", True, "auto", "bf16", id="a network of the registry"),
        pytest.param("alexnet", True, "auto", "bf16", id="another one"),
        pytest.param("lenet", False, "auto", "fp32", id="a CPU without"),
        pytest.param("my.networks:tiny", True, "auto", "fp32", id="a custom network"),
        pytest.param("lenet", True, "fp32", "fp32", id="float32 asked for"),
        pytest.param("lenet", False, "bf16", "bf16", id="bf16 asked for"),
        pytest.param("my.networks:tiny", False, "bf16", "bf16", id="bf16 asked for a custom network"),
    ],
)
def test_precision_is_the_given_one_or_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, arch: str, has_bf16: bool, asked: str, expected: str
):
    monkeypatch.setattr(precision_module, "has_native_bf16", lambda: has_bf16)
    assert choose_precision(TrainConfig(arch=arch, precision=asked), CPU).name == expected
