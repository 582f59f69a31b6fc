"""Sessions: what they say of a model, that devices are honest, and that errors are ours."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from serving import session as session_module
from serving.artifact import IMAGE, LOGITS, PROBABILITIES, TensorSpec
from serving.errors import ArtifactError, DeviceError
from serving.session import CPU_PROVIDER, CUDA_PROVIDER, Session, cuda_is_present
from tests.serving.artifacts import TinyNetwork

needs_no_cuda = pytest.mark.skipif(cuda_is_present(), reason="this onnxruntime has CUDA")

# Logits of some 10 from a few dozen float32 products each.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def network():
    return TinyNetwork()


@pytest.fixture(scope="module")
def session(network):
    return Session(network.to_onnx(), device="cpu", intra_op_threads=1)


def test_specs_are_spelled_as_the_protocol_does(session):
    assert session.inputs == (TensorSpec(IMAGE, "UINT8", (-1, 1, 8, 8)),)
    assert session.outputs == (
        TensorSpec(LOGITS, "FP32", (-1, 3)),
        TensorSpec(PROBABILITIES, "FP32", (-1, 3)),
    )


def test_metadata_comes_with_the_file(session, network):
    assert session.props == network.metadata.to_props()


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_logits_are_those_of_the_network_at_any_batch_size(session, network, count):
    images = network.random_images(count)
    (logits,) = session.run([LOGITS], {IMAGE: images})
    assert np.abs(logits - network.logits(images)).max() < TOLERANCE


def test_another_network_gives_other_logits(session):
    """The twin of the test above."""
    other = TinyNetwork(seed=2)
    images = other.random_images(4)
    (logits,) = session.run([LOGITS], {IMAGE: images})
    assert np.abs(logits - other.logits(images)).max() > 1000 * TOLERANCE


def test_outputs_come_in_the_order_asked_for(session, network):
    images = network.random_images(3)
    probabilities, logits = session.run([PROBABILITIES, LOGITS], {IMAGE: images})
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))


def test_threads_may_share_a_session(session, network):
    images = network.random_images(16)
    (expected,) = session.run([LOGITS], {IMAGE: images})
    wrong = []

    def run() -> None:
        for _ in range(20):
            (logits,) = session.run([LOGITS], {IMAGE: images})
            if not np.array_equal(logits, expected):
                wrong.append(logits)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08"], ids=["empty", "text", "cut short"])
def test_what_onnx_runtime_cannot_load_is_an_artifact_error_of_one_line(content):
    with pytest.raises(ArtifactError, match=r"ONNX Runtime [0-9.]+ cannot load the model: ") as raised:
        Session(content, device="cpu")
    assert "\n" not in str(raised.value)


def test_a_cut_file_is_an_artifact_error(network):
    with pytest.raises(ArtifactError):
        Session(network.to_onnx()[:-200], device="cpu")


def test_cpu_is_taken_when_asked_for(session):
    assert session.provider == CPU_PROVIDER


@needs_no_cuda
def test_cuda_without_cuda_is_refused_and_says_what_to_install(network):
    with pytest.raises(DeviceError, match=r"no CUDA provider .* install foldserve\[gpu\]"):
        Session(network.to_onnx(), device="cuda")


@needs_no_cuda
def test_auto_without_cuda_is_the_cpu(network):
    assert Session(network.to_onnx(), device="auto").provider == CPU_PROVIDER


class OrtWithCudaOnPaper:
    """onnxruntime-gpu without a GPU: it lists CUDA, and its sessions quietly run on the processor."""

    def __init__(self, ort) -> None:
        self._ort = ort

    def __getattr__(self, name):
        return getattr(self._ort, name)

    def get_available_providers(self):
        return [CUDA_PROVIDER, CPU_PROVIDER]

    def InferenceSession(self, model, *_, **__):  # noqa: N802  # the library's name
        return self._ort.InferenceSession(model, self._ort.SessionOptions(), providers=[CPU_PROVIDER])


def test_cuda_that_falls_back_in_silence_is_refused(network, monkeypatch):
    monkeypatch.setattr(session_module, "ort", OrtWithCudaOnPaper(session_module.ort))
    with pytest.raises(
        DeviceError, match=f"{CUDA_PROVIDER} was asked for, but ONNX Runtime took {CPU_PROVIDER}"
    ):
        Session(network.to_onnx(), device="cuda")


def test_auto_falls_back_openly_to_the_cpu(network, monkeypatch):
    monkeypatch.setattr(session_module, "ort", OrtWithCudaOnPaper(session_module.ort))
    assert Session(network.to_onnx(), device="auto").provider == CPU_PROVIDER


def files_left_by_a_session(model, home, **environment):
    """Run a session in a process whose home is ``home`` and return what it left there."""
    home.mkdir()
    (home.parent / "model.onnx").write_bytes(model)
    code = "import serving.session as s, sys; s.Session(open(sys.argv[1], 'rb').read(), device='cpu')"
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [sys.executable, "-c", code, str(home.parent / "model.onnx")],
        check=True,
        env=clean | places | environment,
    )
    return list(home.rglob("*"))


def test_onnx_runtime_reports_to_nobody(network, tmp_path):
    """Its telemetry keeps a store in the home folder, which shows that it is on; by our default it is off."""
    assert files_left_by_a_session(network.to_onnx(), tmp_path / "home") == []


@pytest.mark.gpu
def test_cuda_gives_the_networks_logits_without_tf32(network):
    cuda = Session(network.to_onnx(), device="cuda")
    images = network.random_images(32)
    (logits,) = cuda.run([LOGITS], {IMAGE: images})
    assert cuda.provider == CUDA_PROVIDER
    assert np.abs(logits - network.logits(images)).max() < 2 * TOLERANCE
