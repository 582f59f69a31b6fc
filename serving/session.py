"""ONNX Runtime sessions as the server runs them; the exporter verifies through this same code.

The only importer of onnxruntime. Device ``cuda`` never falls back in silence: ONNX Runtime lists the CUDA
provider on machines without a GPU and then quietly runs on the processor, so what really runs is asked of the
session.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

# ONNX Runtime's wheels report usage to their makers unless this is set when they are loaded. A server reports
# to nobody that its operator did not name; a value that is there already is the operator's.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from serving.artifact import TensorSpec
from serving.errors import ArtifactError, DeviceError
from serving.processors import usable_processors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda"]

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

# For manifests: with a GPU the package has another name, so its metadata cannot be asked.
RUNTIME_VERSION: str = ort.__version__

# TF32 is on by default and errs near 1e-3. HEURISTIC avoids the default's exhaustive search at each new batch
# size.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

_ONNX_TO_PROTOCOL = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class Session:
    """One model on one device. ``run`` may be called from any thread.

    Attributes:
        provider: the execution provider that runs the model, as ONNX Runtime names it.
        inputs, outputs: tensor specs in the model's order.
        props: the model's metadata_props.
    """

    def __init__(
        self,
        model: bytes,
        *,
        device: Device = "auto",
        intra_op_threads: int | None = None,
        optimised: bool = True,
    ) -> None:
        """Load ``model``, the content of a ``model.onnx``.

        Args:
            model: the content of an ONNX file.
            device: "cuda" runs everything on the GPU or raises; "auto" takes CUDA where it works, else the
                CPU.
            intra_op_threads: threads one run may use; by default as many as there are usable processors.
            optimised: False runs node by node what the file says, with nothing fused: a reference.

        Raises:
            DeviceError: the device cannot run the model.
            ArtifactError: ONNX Runtime cannot load the file.
        """
        threads = intra_op_threads or usable_processors()
        self._session = _open(model, device, threads, optimised=optimised)
        self.provider: str = self._session.get_providers()[0]
        self.inputs = tuple(_to_spec(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(_to_spec(argument) for argument in self._session.get_outputs())
        self.props: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(
        self, output_names: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Return the outputs named, in that order."""
        outputs: list[NDArray[np.float32]] = self._session.run(output_names, feeds)
        return outputs


def cuda_is_present() -> bool:
    """Tell whether this ONNX Runtime was built with CUDA (only a session shows whether a GPU works)."""
    return CUDA_PROVIDER in ort.get_available_providers()


def require_device(device: Device) -> None:
    """Raise DeviceError where ``device`` is "cuda" and this ONNX Runtime was built without it."""
    if device == "cuda" and not cuda_is_present():
        raise DeviceError(
            "device cuda was asked for, but the installed onnxruntime has no CUDA provider "
            f"(it has {', '.join(ort.get_available_providers())}): install foldserve[gpu] instead of "
            "foldserve[cpu], "
            "or use --device cpu"
        )


def _open(model: bytes, device: Device, threads: int, *, optimised: bool) -> ort.InferenceSession:
    require_device(device)
    if device == "cpu" or not cuda_is_present():
        return _open_on(model, CPU_PROVIDER, threads, optimised=optimised)
    try:
        return _open_on(model, CUDA_PROVIDER, threads, optimised=optimised)
    except DeviceError:
        # A file that the CPU cannot load either is a bad file (ArtifactError from here), not a bad device.
        on_cpu = _open_on(model, CPU_PROVIDER, threads, optimised=optimised)
        if device == "cuda":
            raise
        return on_cpu


def _open_on(model: bytes, provider: str, threads: int, *, optimised: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what matters of the rest is checked below
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.log_severity_level = 4  # whoever runs a reference says himself what went wrong
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    on_cuda = provider == CUDA_PROVIDER
    if on_cuda:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(
            model, options, providers=[(provider, _CUDA_OPTIONS if on_cuda else {})], enable_fallback=0
        )
    except (
        Exception
    ) as error:  # the kinds differ by release: Fail, InvalidGraph, InvalidProtobuf, RuntimeError, ...
        reason = str(error).splitlines()[0]
        if on_cuda:
            raise DeviceError(f"CUDA cannot run the model: {reason}") from error
        raise ArtifactError(f"ONNX Runtime {ort.__version__} cannot load the model: {reason}") from error
    if session.get_providers()[0] != provider:
        raise DeviceError(
            f"{provider} was asked for, but ONNX Runtime took {session.get_providers()[0]}: is there an "
            "NVIDIA GPU with its driver, and are the CUDA and cuDNN libraries installed (foldserve[gpu] "
            "brings them)?"
        )
    return session


def _to_spec(argument: Any) -> TensorSpec:
    shape = tuple(side if isinstance(side, int) else -1 for side in argument.shape)
    return TensorSpec(argument.name, _ONNX_TO_PROTOCOL.get(argument.type, argument.type), shape)
