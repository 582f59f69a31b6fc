"""Measures PyTorch and ONNX Runtime in this process, from pixels to logits, both in host memory.

Four ways take turns:

    torch     PyTorch in inference mode: copy to the device, forward, copy back
    run       `session.run`, as the server calls it
    bound     IO binding: the device's buffers are kept, pixels are copied into them, logits out of them
    graph     the same, replayed as a CUDA graph (`enable_cuda_graph`)

TF32 is off in all of them, as in the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import torch

from foldserve.artifact.format import IMAGE, LOGITS
from foldserve.export.precision.speed import take_turns
from foldserve.runtime.options import CudaOptions
from foldserve.runtime.session import CUDA_PROVIDER, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.gpu.networks import Network

WAYS = ("torch", "run", "bound", "graph")


@dataclass(frozen=True)
class Row:
    """Median images/s of each way, and why some ways have none."""

    network: str
    precision: str
    batch_size: int
    images_per_s: dict[str, float]
    missing: dict[str, str]


def measure(network: Network, precision: str, batch_size: int, device: str, seconds: float) -> Row:
    """Let the ways take turns for about ``seconds`` and return their medians.

    Raises:
        AssertionError: two ways gave different logits: the figures would compare different things.
    """
    images = network.images(batch_size)
    ways: dict[str, Callable[[], NDArray[np.float32]]] = {
        "torch": _torch(network, precision, images, device),
        "run": _run(network.files[precision], images, device),
    }
    missing: dict[str, str] = {}
    if device == "cuda":
        for way, is_graph in (("bound", False), ("graph", True)):
            try:
                ways[way] = _bound(network.files[precision], images, is_graph=is_graph)
            except Exception as error:  # ONNX Runtime's kinds share no base class
                missing[way] = str(error).splitlines()[0]
    else:
        missing = dict.fromkeys(("bound", "graph"), "needs a GPU")
    _check_equal(ways, precision)
    medians = take_turns(list(ways.values()), seconds)
    speeds = {way: batch_size / median for way, median in zip(ways, medians, strict=True)}
    return Row(network.name, precision, batch_size, speeds, missing)


def _check_equal(ways: dict[str, Callable[[], NDArray[np.float32]]], precision: str) -> None:
    answers = {way: call() for way, call in ways.items()}
    largest = float(np.abs(answers["run"]).max())
    for way, logits in answers.items():
        difference = float(np.abs(logits - answers["run"]).max())
        assert difference <= largest * (1e-3 if precision == "fp32" else 3e-2), (way, difference, largest)


def _torch(
    network: Network, precision: str, images: NDArray[np.uint8], device: str
) -> Callable[[], NDArray[np.float32]]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module = network.module.to(device)
    tensor = torch.from_numpy(images)
    dtype = torch.float16 if precision == "fp16" else torch.float32

    def run() -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=precision == "fp16"):
            logits: NDArray[np.float32] = module(tensor.to(device)).float().cpu().numpy()
        return logits

    return run


def _run(content: bytes, images: NDArray[np.uint8], device: str) -> Callable[[], NDArray[np.float32]]:
    session = Session(content, device="cuda" if device == "cuda" else "cpu")
    return lambda: session.run([LOGITS], {IMAGE: images})[0]


def _bound(content: bytes, images: NDArray[np.uint8], *, is_graph: bool) -> Callable[[], NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    cuda = CudaOptions().to_provider_options() | ({"enable_cuda_graph": "1"} if is_graph else {})
    session = ort.InferenceSession(content, options, providers=[(CUDA_PROVIDER, cuda)])
    source = ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
    class_count = session.get_outputs()[0].shape[1]
    target = ort.OrtValue.ortvalue_from_shape_and_type((len(images), class_count), np.float32, "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(IMAGE, source)
    binding.bind_ortvalue_output(LOGITS, target)

    def run() -> NDArray[np.float32]:
        source.update_inplace(images)
        session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = target.numpy()
        return logits

    run()  # a graph is captured at the first run, so what cannot be captured fails here
    return run
