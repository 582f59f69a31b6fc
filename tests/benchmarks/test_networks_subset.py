"""Small networks that others wrote, one of each kind, are published and right (`make bench-networks`)."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.networks.environment import EnvironmentMissingError, networks_python
from benchmarks.networks.results import read_results
from foldserve.demo.children import ending_with_us
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SUBSET = {
    "torchvision/squeezenet1_1": "no batch norm",
    "torchvision/shufflenet_v2_x0_5": "channels shuffled by reshapes",
    "torchvision/mnasnet0_5": "a state dict with versions in its metadata",
    "timm/test_resnet": "residual sums",
    "timm/test_byobnet": "blocks of several kinds",
    "timm/test_efficientnet": "depthwise, squeeze and excitation",
    "timm/test_nfnet": "standardised weights",
    "timm/test_convnext": "layer norm and layer scale",
}


@pytest.mark.slow
def test_networks_of_each_kind_are_published_and_right(tmp_path: Path) -> None:
    try:
        networks_python()
    except EnvironmentMissingError as error:
        pytest.skip(f"needs torchvision and timm: {error}")
    results = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.networks", "--results", results, "--only", *SUBSET]
    command += ["--statistics", "calibrated"]
    done = subprocess.run(ending_with_us(command), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_results(results)
    assert {(name, "calibrated") for name in SUBSET} == rows.keys()
    outcomes = {network: (row["outcome"], row.get("reason")) for (network, _), row in rows.items()}
    assert outcomes == dict.fromkeys(SUBSET, ("right", None))
    assert all(row["pytorch"]["outcome"] in ("right", "wrong", "failed") for row in rows.values())
    folded = {network: row["folded"] / row["folds"] for (network, _), row in rows.items() if row["folds"]}
    assert folded == dict.fromkeys(folded, 1.0)
    assert "## Summary" in done.stdout
