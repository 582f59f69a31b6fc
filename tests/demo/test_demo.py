"""The demo on real data: its output, the files it writes, and a proof that can fail."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldserve.artifact.format import IMAGE, LOGITS, read_artifact
from foldserve.artifact.versions import list_versions
from foldserve.demo.pipeline import prove
from foldserve.demo.server_process import running_server
from foldserve.runtime.session import Session
from foldserve.serving.errors import UnavailableError
from foldserve.training.checkpoint import load_checkpoint, save_checkpoint
from foldserve.training.datasets import load_dataset
from tests.conftest import DemoRun, run_demo


def test_demo_ends_with_the_proof_on_all_test_images(demo_run: DemoRun) -> None:
    rows = re.findall(r"│ (\S.*?) +│ +([\d.]+)% │ +(\S.*?) │ +(\S+) │ +(\w*) +│", demo_run.output)
    names, accuracies, identical, differences, verdicts = zip(*rows, strict=True)
    assert [name.partition(" ")[0] for name in names] == ["PyTorch", "ONNX", "served"]
    # One epoch of real training is far from chance (10 %), and all three are equally good.
    assert float(accuracies[0]) > 70
    assert max(map(float, accuracies)) - min(map(float, accuracies)) < 0.02
    assert identical[0] == differences[0] == "reference"
    assert all(9_990 <= int(text.replace(",", "")) <= 10_000 for text in identical[1:])
    assert all(0 <= float(text) <= 1e-4 for text in differences[1:])
    assert verdicts == ("", "ok", "ok")
    assert "Proven:" in demo_run.output


def test_demo_prints_where_pictures_and_log_are(demo_run: DemoRun) -> None:
    for name in ("training curves", "confusion matrix"):
        path = Path(re.search(rf"^{name} +(\S+)$", demo_run.output, flags=re.MULTILINE)[1])
        with Image.open(path) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("L").getcolors(256)) > 20  # not an empty canvas
    log = Path(re.search(r"^server's log +(\S+)$", demo_run.output, flags=re.MULTILINE)[1])
    assert "lenet/1 ready" in log.read_text()


def test_second_demo_keeps_run_and_version_and_proves_again(demo_run: DemoRun) -> None:
    done = run_demo(demo_run.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is finished" in done.stdout
    assert "Proven:" in done.stdout
    assert list_versions(demo_run.repository / "lenet") == [1]


def test_the_proof_fails_for_a_network_that_differs_in_one_weight(demo_run: DemoRun, tmp_path: Path) -> None:
    """The twin: the same served version held against a reference with one changed weight."""
    checkpoint = load_checkpoint(demo_run.run_dir)
    weights = checkpoint.weights if checkpoint.ema_weights is None else checkpoint.ema_weights
    next(iter(weights.values())).flatten()[12] += 0.01  # the centre of the first 5x5 kernel
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    dataset = load_dataset("fashion-mnist")
    with running_server(demo_run.repository, device="cpu", log=tmp_path / "server.log") as address:
        session = Session(read_artifact(demo_run.version).model, device="cpu")
        true_rows = prove(demo_run.run_dir, demo_run.version, address, dataset, session)
        false_rows = prove(tmp_path, demo_run.version, address, dataset, session)
    assert [row.passed for row in true_rows] == [True, True, True]
    assert [row.passed for row in false_rows] == [True, False, False]


def test_a_stock_triton_client_gets_the_logits_of_the_onnx_session(demo_run: DemoRun, tmp_path: Path) -> None:
    """In a process of its own: one process cannot hold Triton's stubs and ours."""
    images = load_dataset("fashion-mnist").test_images[:300].numpy()
    np.save(tmp_path / "images.npy", images)
    code = """
import sys, numpy as np, tritonclient.grpc as triton
images = np.load("images.npy")
request = triton.InferInput("image", images.shape, "UINT8")
request.set_data_from_numpy(images)
with triton.InferenceServerClient(sys.argv[1]) as client:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("lenet")
    np.save("logits.npy", client.infer("lenet", [request]).as_numpy("logits"))
"""
    with running_server(demo_run.repository, device="cpu", log=tmp_path / "server.log") as address:
        subprocess.run([sys.executable, "-c", code, address], check=True, cwd=tmp_path)
    session = Session(read_artifact(demo_run.version).model, device="cpu")
    expected = session.run([LOGITS], {IMAGE: images})[0]
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-5)


def test_repository_without_a_valid_version_is_reported_with_the_reason(
    demo_run: DemoRun, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    shutil.copytree(demo_run.repository, repository)
    model = repository / "lenet" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with (
        pytest.raises(UnavailableError, match="SHA-256"),
        running_server(repository, device="cpu", log=tmp_path / "server.log"),
    ):
        pass


@pytest.mark.gpu
def test_the_proof_holds_over_the_cuda_provider(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--device", "cuda")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10,000 test images, on CUDAExecutionProvider" in done.stdout
    assert "CUDAExecutionProvider" in (tmp_path / "runs" / "lenet" / "server.log").read_text()
