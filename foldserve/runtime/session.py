"""Opens and runs ONNX Runtime sessions, for the server and for the exporter's verification.

The only importer of onnxruntime. Device ``cuda`` never falls back to the CPU silently: ONNX Runtime lists the
CUDA provider on machines without a GPU and then runs on the CPU, or leaves operators there that CUDA does not
support. So the opened session is asked what runs where.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime's wheels send telemetry unless this is set when they are loaded. A server must not report to
# anybody that its operator did not choose; a value that is already set is the operator's.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

from foldserve.artifact.format import TensorSpec
from foldserve.errors import ArtifactError, DeviceError, DeviceLostError
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.options import Device, RuntimeOptions, heavy_operators, is_device_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.runtime.time_limit import StopSignal

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

# For manifests: with a GPU the package has another name, so its metadata cannot be asked.
RUNTIME_VERSION: str = ort.__version__

# Severity 4 logs fatal messages only. Failures are raised as exceptions, and ONNX Runtime's log lines would
# break a JSON log. Some report no fault: cuDNN's search logs each algorithm that does not apply, and a run
# that was told to stop logs that it stopped.
_FATAL = 4
ort.set_default_logger_severity(_FATAL)

# An ONNX file may refer to other files for its weights, which ONNX Runtime reads relative to the current
# folder. An artifact has none, so this points to a folder that cannot exist.
_NO_FOLDER = "/dev/null/none"

# Largest constant that ONNX Runtime may precompute as it opens a file: this many bytes, or four times the
# file's size. That is enough for weights that are transposed, or converted from int8 to float32. Larger ones
# are computed in each run, which can be stopped.
_FOLDED_BYTES = 16 * 1024 * 1024
_FOLDED_OF_FILE = 4

# The smallest model, made with onnx.helper: Identity from "x" to "y" on one number. The arena frees memory at
# the end of a run that asks for it; this model is run for that.
_TINY_MODEL = (
    b'\x08\x08:/\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0b\n\x01x\x12\x06\n\x04\x08\x01\x12\x00'
    b"b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00B\x04\n\x00\x10\r"
)

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


class _SharedArena:
    """Holds the memory arena that all CPU sessions of the process share, once it is opened."""

    giver_back: ort.InferenceSession | None = None


def share_arena(max_bytes: int) -> None:
    """Make all sessions opened from now on share an arena of at most ``max_bytes`` bytes.

    Without it, each session keeps its peak memory for ever, and nothing limits how much a graph may allocate.
    A process has one shared arena: the first call sets its size.
    """
    if _SharedArena.giver_back is not None:
        return
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    settings = {"max_mem": max_bytes, "arena_extend_strategy": 0}
    defaults = {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(settings | defaults))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    _use_shared_arena(options)
    _SharedArena.giver_back = ort.InferenceSession(_TINY_MODEL, options, providers=[CPU_PROVIDER])
    give_back_memory()  # allocates the arena's first chunk, which is never freed


def give_back_memory() -> None:
    """Return the shared arena's unused memory to the system, if there is a shared arena."""
    if _SharedArena.giver_back is not None:
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _SharedArena.giver_back.run(["y"], {"x": np.array(0, np.float32)}, options)


def _use_shared_arena(options: ort.SessionOptions) -> None:
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Weights get allocations of their own: they are freed with the session, whatever else the arena holds.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")


class Session:
    """Runs one model on one device. ``run`` may be called from any thread.

    Attributes:
        provider: ONNX Runtime's name of the execution provider that runs the model.
        choice: why that provider was chosen, for the log.
        inputs, outputs: tensor specs in the model's order.
        props: the model's metadata_props.
    """

    def __init__(
        self,
        model: bytes | Path,
        *,
        device: Device = "auto",
        intra_op_threads: int | None = None,
        options: RuntimeOptions | None = None,
        optimised: bool = True,
        stop: StopSignal | None = None,
    ) -> None:
        """Load ``model``, a ``model.onnx``.

        Args:
            model: the content of an ONNX file, or a trusted file, which is loaded with less memory.
            device: "cuda" runs it on the GPU or raises; "auto" uses CUDA if it works, else the CPU.
            intra_op_threads: threads per run; by default the number of usable CPUs.
            options: further options of ONNX Runtime.
            optimised: False runs the file's nodes one by one, without fusing any, as a reference.
            stop: interrupts opening the file and, as `stop` does, its runs.

        Raises:
            DeviceError: the device cannot run the model.
            ArtifactError: ONNX Runtime cannot load the file.
        """
        threads = intra_op_threads or usable_cpus()
        options = options or RuntimeOptions()
        if not optimised:
            options = options.model_copy(update={"graph_optimization": "none"})
        self._run_options = ort.RunOptions()
        if stop is not None:
            stop.on_set(self.stop)
        self._session, self.choice = _open(model, device, threads, options, stop)
        self.provider: str = self._session.get_providers()[0]
        try:
            self.inputs = tuple(_to_spec(argument) for argument in self._session.get_inputs())
            self.outputs = tuple(_to_spec(argument) for argument in self._session.get_outputs())
            self.props: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as error:
            raise ArtifactError(
                f"the model's metadata or the names of its inputs and outputs are not UTF-8: {error}"
            ) from None

    def run(
        self, output_names: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Return the named outputs, in the order of ``output_names``.

        Raises:
            DeviceLostError: the GPU is lost, for this and every later run of this process.
        """
        try:
            outputs: list[NDArray[np.float32]] = self._session.run(output_names, feeds, self._run_options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if self.provider == CPU_PROVIDER or not is_device_loss(str(error)):
                raise
            raise DeviceLostError(
                f"{self.provider} failed and will not recover in this process: {_first_line(error)}; "
                "restart the server"
            ) from error
        return outputs

    def stop(self) -> None:
        """Make all running and later runs fail before their next operator."""
        self._run_options.terminate = True


def cuda_is_present() -> bool:
    """Tell whether this ONNX Runtime was built with CUDA; only a session shows whether a GPU works."""
    return CUDA_PROVIDER in ort.get_available_providers()


def require_device(device: Device) -> None:
    """Check that ONNX Runtime was built for the device.

    Raises:
        DeviceError: ``device`` is "cuda", and ONNX Runtime was built without it.
    """
    if device == "cuda" and not cuda_is_present():
        raise DeviceError(
            "device cuda was asked for, but the installed onnxruntime has no CUDA provider "
            f"(it has {', '.join(ort.get_available_providers())}): install foldserve[gpu] instead of "
            "foldserve[serve], or use --device cpu"
        )


def _open(
    model: bytes | Path, device: Device, threads: int, options: RuntimeOptions, stop: StopSignal | None
) -> tuple[ort.InferenceSession, str]:
    """Return a session on the device, and why that device was chosen."""
    require_device(device)
    if device == "cpu":
        return _open_on(model, CPU_PROVIDER, threads, options, stop), "the CPU was asked for"
    if not cuda_is_present():
        choice = "auto chose the CPU: the installed onnxruntime has no CUDA provider"
        return _open_on(model, CPU_PROVIDER, threads, options, stop), choice
    try:
        session = _open_on(model, CUDA_PROVIDER, threads, options, stop)
    except DeviceError as error:
        # A file that the CPU cannot load either is a bad file (ArtifactError from here), not a bad device.
        on_cpu = _open_on(model, CPU_PROVIDER, threads, options, stop)
        if device == "cuda":
            raise
        return on_cpu, f"auto chose the CPU: {error}"
    return session, "CUDA was asked for" if device == "cuda" else "auto chose CUDA: it runs the whole model"


def _open_on(
    model: bytes | Path,
    provider: str,
    threads: int,
    options: RuntimeOptions,
    stop: StopSignal | None,
    *,
    allow_cpu: bool = False,
) -> ort.InferenceSession:
    """Open a session on one provider; with ``allow_cpu``, shape arithmetic may stay on the CPU."""
    on_cuda = provider == CUDA_PROVIDER
    session_options = _to_session_options(
        threads, options, on_cuda=on_cuda, forbid_cpu=on_cuda and not allow_cpu
    )
    size = len(model) if isinstance(model, bytes) else model.stat().st_size
    max_folded_bytes = max(_FOLDED_BYTES, _FOLDED_OF_FILE * size)
    session_options.add_session_config_entry(
        "optimization.constant_folding_max_output_size_in_bytes", str(max_folded_bytes)
    )
    if stop is not None:
        stop.on_set(lambda: session_options.set_load_cancellation_flag(True))
    try:
        session = ort.InferenceSession(
            model,
            session_options,
            providers=[(provider, options.cuda.to_provider_options() if on_cuda else {})],
            enable_fallback=0,
        )
    except (
        Exception
    ) as error:  # the kinds differ by release: Fail, InvalidGraph, InvalidProtobuf, RuntimeError, ...
        if on_cuda:
            if not allow_cpu and "assigned to the default CPU EP" in str(error):
                return _open_on(model, provider, threads, options, stop, allow_cpu=True)
            raise DeviceError(f"CUDA cannot run the model: {_first_line(error)}") from error
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load the model: {_first_line(error)}"
        ) from error
    if session.get_providers()[0] != provider:
        raise DeviceError(
            f"{provider} was asked for, but ONNX Runtime uses {session.get_providers()[0]}: is there an "
            "NVIDIA GPU with its driver, and are the CUDA and cuDNN libraries installed (foldserve[gpu] "
            "brings them)?"
        )
    if allow_cpu:
        _check_runs_on(session, provider)
    return session


def _to_session_options(
    threads: int, options: RuntimeOptions, *, on_cuda: bool, forbid_cpu: bool
) -> ort.SessionOptions:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = options.inter_op_threads
    if options.inter_op_threads > 1:
        session_options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    level = ort.GraphOptimizationLevel
    session_options.graph_optimization_level = {
        "none": level.ORT_DISABLE_ALL,
        "basic": level.ORT_ENABLE_BASIC,
        "extended": level.ORT_ENABLE_EXTENDED,
        "all": level.ORT_ENABLE_ALL,
    }[options.graph_optimization]
    session_options.enable_cpu_mem_arena = options.arena
    session_options.log_severity_level = _FATAL  # errors are raised as exceptions
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session_options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NO_FOLDER
    )
    if _SharedArena.giver_back is not None and options.arena and not on_cuda:
        _use_shared_arena(session_options)
    if on_cuda:
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if forbid_cpu:
        session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return session_options


def _check_runs_on(session: ort.InferenceSession, provider: str) -> None:
    """Raise DeviceError unless ``provider`` runs everything but shape arithmetic."""
    elsewhere = heavy_operators(
        [
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != provider
            for node in part.get_nodes()
        ]
    )
    if elsewhere:
        raise DeviceError(
            f"{provider} does not run the model's {', '.join(elsewhere)}, which would run on the CPU; serve "
            "it with --device cpu"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _to_spec(argument: Any) -> TensorSpec:
    shape = tuple(side if isinstance(side, int) else -1 for side in argument.shape)
    return TensorSpec(argument.name, _ONNX_TO_PROTOCOL.get(argument.type, argument.type), shape)
