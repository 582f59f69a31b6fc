"""An exported file is plain ONNX: other runtimes answer as its golden pairs say."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from foldserve.artifact.format import MODEL_FILE, Golden, ModelMetadata, read_artifact
from foldserve.runtime.session import Session
from tests.contract.test_kserve_client import PYTHON
from tests.support.foreign_clients import CLIENTS, SOURCE, report_of, require_installed

if TYPE_CHECKING:
    from tests.conftest import DemoRun

_COUNT = 32


@pytest.fixture
def golden(demo_run: DemoRun) -> Golden:
    """Golden pairs of a LeNet that was trained, folded and exported: real images and PyTorch's logits."""
    return read_artifact(demo_run.version).golden


def assert_agrees(report: Any, golden: Golden, version: Path) -> None:
    logits = np.float32(report["logits"]).reshape(_COUNT, -1)
    expected = golden.reference_logits[:_COUNT]
    assert np.abs(logits - expected).max() <= golden.reference_tolerance
    props = Session((version / MODEL_FILE).read_bytes(), device="cpu").props
    scaled = expected / ModelMetadata.from_props(props).temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    probabilities = np.float32(report["probabilities"]).reshape(_COUNT, -1)
    assert np.abs(probabilities - softmax).max() < 1e-4
    # The twin: other images' logits are further away, or the comparison would prove nothing.
    assert np.abs(logits[1:] - expected[:-1]).max() > 100 * golden.reference_tolerance


@pytest.mark.interop
def test_openvino_reproduces_the_golden_pairs(demo_run: DemoRun, golden: Golden, tmp_path: Path) -> None:
    require_installed([PYTHON], "OpenVINO")
    np.save(tmp_path / "images.npy", golden.images[:_COUNT])
    script = CLIENTS / "openvino_script.py"
    report = report_of(PYTHON, script, demo_run.version / MODEL_FILE, tmp_path / "images.npy")
    assert_agrees(report, golden, demo_run.version)


@pytest.mark.interop
def test_onnxruntime_web_reproduces_the_golden_pairs(
    demo_run: DemoRun, golden: Golden, tmp_path: Path
) -> None:
    node = Path(shutil.which("node") or SOURCE / "node")
    require_installed([node, CLIENTS / "node" / "node_modules" / "onnxruntime-web"], "onnxruntime-web")
    images = golden.images[:_COUNT]
    text = {"shape": images.shape, "pixels": base64.b64encode(images.tobytes()).decode()}
    (tmp_path / "input.json").write_text(json.dumps(text))
    script = CLIENTS / "node" / "onnxruntime_web.js"
    report = report_of(node, script, demo_run.version / MODEL_FILE, tmp_path / "input.json")
    assert_agrees({name: output["data"] for name, output in report.items()}, golden, demo_run.version)
