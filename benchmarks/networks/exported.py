"""Runs and reads ONNX files for the judge, and writes PyTorch's."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from benchmarks.networks.images import normalised
from benchmarks.networks.judge import CHUNK
from foldserve.artifact.format import LOGITS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn


def export_by_pytorch(module: nn.Module, images: NDArray[np.uint8], path: Path) -> None:
    """Write what `torch.onnx.export(dynamo=True)` makes of a network, for `CHUNK` images at once."""
    inputs = torch.from_numpy(normalised(images[:CHUNK])).float()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (inputs,), str(path), dynamo=True)


def published_logits(content: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the logits of a file that foldserve published."""
    return _run(content, images, lambda chunk: chunk, LOGITS)


def pytorch_logits(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the first output of a file that PyTorch's exporter wrote."""
    return _run(str(path), images, lambda chunk: normalised(chunk).astype(np.float32), None)


def node_by_node(content: bytes, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first output of a file for float images, one at a time, node by node as it is written."""
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    logits: NDArray[np.float32] = np.concatenate(
        [session.run(None, {name: image[np.newaxis]})[0] for image in inputs]
    )
    return logits


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # failures are raised too
    return options


def _run(
    model: bytes | str,
    images: NDArray[np.uint8],
    prepare: Callable[[NDArray[np.uint8]], NDArray[Any]],
    output: str | None,
) -> NDArray[np.float32]:
    session = ort.InferenceSession(model, _options(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = None if output is None else [output]
    parts = [
        session.run(outputs, {name: prepare(images[start : start + CHUNK])})[0]
        for start in range(0, len(images), CHUNK)
    ]
    logits: NDArray[np.float32] = np.concatenate(parts)
    return logits


def batch_norm_count(model: bytes | Path) -> int:
    """Return how many BatchNormalization nodes the graph of a file has."""
    read = (
        onnx.load_from_string(model)
        if isinstance(model, bytes)
        else onnx.load(str(model), load_external_data=False)
    )
    return sum(node.op_type == "BatchNormalization" for node in read.graph.node)
