"""The KServe SDK's own client, in an environment of its own, understands every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.runtime.session import Session
from tests.support.foreign_clients import CLIENTS, SOURCE, report_of, require_installed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork
    from tests.support.server_process import ServerProcess

PYTHON = SOURCE / ".venv-interop" / "bin" / "python"


@pytest.mark.interop
def test_kserve_client_gets_the_same_logits(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    require_installed([PYTHON], "the KServe SDK")
    images = network.random_images(5)
    np.save(tmp_path / "images.npy", images)
    report = report_of(PYTHON, CLIENTS / "kserve_script.py", server.address, tmp_path / "images.npy")
    (logits,) = Session(network.to_onnx(), device="cpu").run(("logits",), {"image": images})
    # The same runtime and file: bit-identical, also after JSON, which keeps float64 whole.
    for way in ("logits", "typed_logits", "logits_one_by_one"):
        assert (np.float32(report[way]) == logits).all(), way
    assert (report["live"], report["ready"], report["model_ready"]) == (True, True, True)
    assert (report["id"], report["version"]) == ("42", "2")
    status, message = report["error"]
    assert status == "INVALID_ARGUMENT"
    assert "normalisation (mean, std) is inside the model" in message
