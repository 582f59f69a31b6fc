"""Tests sessions: the specs that they report, the devices that they use, and their errors."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES, TensorSpec
from foldserve.errors import ArtifactError, DeviceError, DeviceLostError
from foldserve.runtime import session as session_module
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import CPU_PROVIDER, CUDA_PROVIDER, Session, cuda_is_present
from tests.support.artifacts import TinyNetwork

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
def test_file_that_cannot_be_loaded_is_an_artifact_error_of_one_line(content):
    with pytest.raises(ArtifactError, match=r"ONNX Runtime [0-9.]+ cannot load the model: ") as raised:
        Session(content, device="cpu")
    assert "\n" not in str(raised.value)


def test_a_cut_file_is_an_artifact_error(network):
    with pytest.raises(ArtifactError):
        Session(network.to_onnx()[:-200], device="cpu")


def test_configured_cpu_is_used(session):
    assert session.provider == CPU_PROVIDER


@needs_no_cuda
def test_cuda_without_cuda_is_refused_and_says_what_to_install(network):
    with pytest.raises(DeviceError, match=r"no CUDA provider .* install foldserve\[gpu\]"):
        Session(network.to_onnx(), device="cuda")


@needs_no_cuda
def test_auto_without_cuda_is_the_cpu(network):
    assert Session(network.to_onnx(), device="auto").provider == CPU_PROVIDER


class OrtWithCudaOnPaper:
    """Acts as onnxruntime-gpu without a GPU: it lists CUDA, and its sessions silently run on the CPU."""

    def __init__(self, ort) -> None:
        self._ort = ort

    def __getattr__(self, name):
        return getattr(self._ort, name)

    def get_available_providers(self):
        return [CUDA_PROVIDER, CPU_PROVIDER]

    def InferenceSession(self, model, *_, **__):  # noqa: N802  # the library's name
        return self._ort.InferenceSession(model, self._ort.SessionOptions(), providers=[CPU_PROVIDER])


def test_silent_fallback_from_cuda_is_refused(network, monkeypatch):
    monkeypatch.setattr(session_module, "ort", OrtWithCudaOnPaper(session_module.ort))
    with pytest.raises(
        DeviceError, match=f"{CUDA_PROVIDER} was asked for, but ONNX Runtime uses {CPU_PROVIDER}"
    ):
        Session(network.to_onnx(), device="cuda")


def test_auto_falls_back_to_the_cpu_and_says_why(network, monkeypatch):
    monkeypatch.setattr(session_module, "ort", OrtWithCudaOnPaper(session_module.ort))
    assert Session(network.to_onnx(), device="auto").provider == CPU_PROVIDER


class OrtThatLeavesNodes:
    """Acts as onnxruntime with a GPU that cannot run ``left`` operators: those stay on the CPU."""

    def __init__(self, ort, left) -> None:
        self._ort = ort
        self._left = left

    def __getattr__(self, name):
        return getattr(self._ort, name)

    def get_available_providers(self):
        return [CUDA_PROVIDER, CPU_PROVIDER]

    def InferenceSession(self, model, options, providers, **_):  # noqa: N802  # the library's name
        if providers[0][0] == CPU_PROVIDER:
            return self._ort.InferenceSession(model, options, providers=[CPU_PROVIDER])
        # With the CPU forbidden this is ONNX Runtime's own refusal; else it is where all nodes go.
        session = self._ort.InferenceSession(model, options, providers=["AzureExecutionProvider"])
        return PartlyOnCuda(session, self._left)


class PartlyOnCuda:
    """Returns a real session's nodes, with all but ``left`` assigned to CUDA."""

    def __init__(self, session, left) -> None:
        self._session = session
        self._left = left

    def __getattr__(self, name):
        return getattr(self._session, name)

    def get_providers(self):
        return [CUDA_PROVIDER, CPU_PROVIDER]

    def get_provider_graph_assignment_info(self):
        for part in self._session.get_provider_graph_assignment_info():
            nodes = part.get_nodes()
            on_cpu = all(node.op_type in self._left for node in nodes)
            yield SimpleNamespace(
                ep_name=part.ep_name if on_cpu else CUDA_PROVIDER, get_nodes=lambda nodes=nodes: nodes
            )


def test_cuda_that_leaves_a_heavy_node_on_the_cpu_is_refused(network, monkeypatch):
    monkeypatch.setattr(session_module, "ort", OrtThatLeavesNodes(session_module.ort, {"Conv", "Cast"}))
    with pytest.raises(DeviceError, match=f"{CUDA_PROVIDER} does not run the model's Conv, which"):
        Session(network.to_onnx(), device="cuda")


def test_cuda_that_leaves_shape_arithmetic_on_the_cpu_is_accepted(network, monkeypatch):
    monkeypatch.setattr(session_module, "ort", OrtThatLeavesNodes(session_module.ort, {"Cast"}))
    assert Session(network.to_onnx(), device="cuda").provider == CUDA_PROVIDER


def test_auto_says_why_it_chose_the_cpu(network, monkeypatch):
    monkeypatch.setattr(session_module, "ort", OrtThatLeavesNodes(session_module.ort, {"Conv"}))
    assert "does not run the model's Conv" in Session(network.to_onnx(), device="auto").choice


def test_weights_in_files_beside_the_process_are_not_read(tmp_path, monkeypatch):
    """An ONNX file may refer to others; by default ONNX Runtime reads them from the current folder."""
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret.bin")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "pointing",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])],
        [weights],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="External data path"):
        Session(model, device="cpu", options=RuntimeOptions(graph_optimization="none"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(RuntimeOptions(graph_optimization="none"), id="no optimisation"),
        pytest.param(RuntimeOptions(inter_op_threads=2), id="operators at the same time"),
        pytest.param(RuntimeOptions(arena=False), id="no arena"),
    ],
)
def test_options_do_not_change_the_outputs(network, options):
    images = network.random_images(5)
    (logits,) = Session(network.to_onnx(), device="cpu", options=options).run([LOGITS], {IMAGE: images})
    assert np.abs(logits - network.logits(images)).max() < TOLERANCE


class FailingRuntime:
    """Acts as a session on CUDA whose runs fail with ``message``."""

    def __init__(self, message) -> None:
        self._message = message

    def run(self, *_):
        raise RuntimeError(self._message)


@pytest.mark.parametrize(
    ("provider", "message", "expected"),
    [
        pytest.param(CUDA_PROVIDER, "CUDA failure 700: illegal access", DeviceLostError, id="lost"),
        pytest.param(CUDA_PROVIDER, "CUDA failure 2: out of memory", RuntimeError, id="out of memory"),
        pytest.param(CPU_PROVIDER, "CUDA failure 700: illegal access", RuntimeError, id="not on CUDA"),
    ],
)
def test_lost_device_is_distinguished_from_a_failed_run(network, provider, message, expected):
    session = Session(network.to_onnx(), device="cpu")
    session._session = FailingRuntime(message)
    session.provider = provider
    with pytest.raises(expected, match=message.partition(":")[0]):
        session.run([LOGITS], {})


def files_left_by_a_session(model, home, **environment):
    """Run a session in a process whose home is ``home``; return the files that it left there."""
    home.mkdir()
    (home.parent / "model.onnx").write_bytes(model)
    code = (
        "import foldserve.runtime.session as s, sys; s.Session(open(sys.argv[1], 'rb').read(), device='cpu')"
    )
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [sys.executable, "-c", code, str(home.parent / "model.onnx")],
        check=True,
        env=clean | places | environment,
    )
    return list(home.rglob("*"))


def test_onnx_runtime_sends_no_telemetry(network, tmp_path):
    """Telemetry keeps a file in the home folder if it is on; our default turns it off."""
    assert files_left_by_a_session(network.to_onnx(), tmp_path / "home") == []


@pytest.mark.gpu
def test_cuda_gives_the_networks_logits_without_tf32(network):
    cuda = Session(network.to_onnx(), device="cuda")
    images = network.random_images(32)
    (logits,) = cuda.run([LOGITS], {IMAGE: images})
    assert cuda.provider == CUDA_PROVIDER
    assert np.abs(logits - network.logits(images)).max() < 2 * TOLERANCE
