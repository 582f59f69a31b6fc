"""Traces a PyTorch network into an unoptimised ONNX graph.

`torch.onnx.export` optimises by default and fuses batch norm by itself. With ``optimize=False`` every batch
norm arrives as a BatchNormalization node, and `foldserve.export.graph.fold_pass` decides on each.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from foldserve.export.errors import FoldError, TraceError
from foldserve.export.graph.attention import spell_out_attention
from foldserve.export.graph.constants import compute_constants, find_constants, keep_float64
from foldserve.export.graph.release_memory import without_collections
from foldserve.export.graph.torchlib import without_parsing
from foldserve.export.graph.trace_faults import conversion_fault, silent, tracing_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from torch import nn

# Opset 18 with IR 10 loads in ONNX Runtime 1.20 (two years old in 2026) and later.
OPSET = 18

INPUT = "image"
OUTPUT = "logits"

# The names of the arguments by which PyTorch's operators are switched between training and inference.
_TRAINING = {"train", "training", "dropout_p"}


def trace(network: nn.Module, image_shape: tuple[int, int, int]) -> torch.onnx.ONNXProgram:
    """Trace ``network`` on float images [N, C, H, W] into an ONNX graph with a symbolic N.

    ``network`` is not changed. The program keeps the traced PyTorch graph beside the ONNX model; a value has
    the same name in both, by which `foldserve.export.verification.divergence` compares them.

    Raises:
        TraceError: it is in training mode, random, or has control flow that depends on values, an operator
            that ONNX lacks, or a fixed batch size.
        FoldError: a batch norm uses the statistics of the current batch.
    """
    _check_eval_mode(network)
    # Two images: with one, torch.export would take the batch dimension for a constant.
    example = torch.zeros(2, *image_shape)
    batch = torch.export.Dim("batch", min=1)
    with _quiet(), without_collections(), torch.no_grad():
        try:
            traced = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        except Exception as error:  # torch.export raises types of its own, RuntimeError, AssertionError, ...
            raise TraceError(f"the network cannot be traced: {tracing_fault(error, network)}") from error
        _name_batch_norms(traced.graph_module)
        spell_out_attention(traced.graph_module)
        constants = find_constants(traced)
        _check_inference(traced.graph, constants)
        arrays = compute_constants(traced, constants)
        try:
            with without_parsing():
                program = torch.onnx.export(
                    traced,
                    dynamo=True,
                    optimize=False,
                    verbose=False,
                    opset_version=OPSET,
                    input_names=[INPUT],
                    output_names=[OUTPUT],
                )
        except Exception as error:
            fault = conversion_fault(error, traced)
            raise TraceError(f"the network cannot be converted to ONNX: {fault}") from error
    assert program is not None  # it is None only if a file was asked for
    _check_signature(program.model.graph, image_shape)
    keep_float64(program.model.graph, arrays)
    return program


def _check_eval_mode(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if module.training:
            raise TraceError(
                f"{name or 'the network'} ({type(module).__name__}) is in training mode; "
                "call .eval() before export"
            )


def _name_batch_norms(module: torch.fx.GraphModule) -> None:
    """Turn instance norm with running statistics into batch norm, which then computes the same.

    Both operators take the same arguments. The exporter repeats the statistics of such an instance norm for
    every image, which no pass could recognise as constants.
    """
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                if node.target is torch.ops.aten.instance_norm.default and node.args[5] is False:
                    node.target = torch.ops.aten.batch_norm.default
            part.recompile()


def _check_inference(graph: torch.fx.Graph, constants: set[torch.fx.Node]) -> None:
    """Refuse what eval mode does not turn off: batch statistics, calls with training=True, randomness.

    A batch norm of ``constants`` normalises weights, not images.
    """
    for node in graph.nodes:
        operator = node.target
        if not isinstance(operator, torch._ops.OpOverload):
            continue
        name = operator.__name__
        is_training = _is_training(node, operator)
        if "batch_norm" in name and is_training and node not in constants:
            raise FoldError(
                f"{_module_name(node)} normalises by the statistics of the current batch "
                "(track_running_stats=False, or a functional call with training=True): an image's output "
                "would depend on the other images; train it with running statistics"
            )
        if "dropout" in name and is_training:
            raise TraceError(
                f"{_module_name(node)} drops values in eval mode too (a functional dropout without "
                "training=self.training): its output is not repeatable"
            )
        if torch.Tag.nondeterministic_seeded in operator.tags and is_training is not False:
            raise TraceError(
                f"{_module_name(node)} draws random numbers in eval mode too ({name}): its output is not "
                "repeatable"
            )


def _is_training(node: torch.fx.Node, operator: torch._ops.OpOverload) -> bool | None:
    """Return whether ``node`` was called in training mode; None if its operator has no such argument."""
    for position, argument in enumerate(operator._schema.arguments):
        if argument.name in _TRAINING:
            given = node.kwargs.get(argument.name, argument.default_value)
            given = node.args[position] if position < len(node.args) else given
            return given is None or bool(given)  # without the argument, PyTorch's dropout drops
    return None


def _check_signature(graph: ir.Graph, image_shape: tuple[int, int, int]) -> None:
    if [value.name for value in graph.inputs] != [INPUT] or len(graph.outputs) != 1:
        raise TraceError(
            f"the network has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "expected one image in and one tensor of logits out"
        )
    in_shape, out_shape = graph.inputs[0].shape, graph.outputs[0].shape
    assert in_shape is not None  # torch.export always knows
    assert out_shape is not None
    if isinstance(in_shape[0], int):
        raise TraceError(
            f"the network takes batches of {in_shape[0]} only; expected one that takes any number of images"
        )
    if len(out_shape) != 2 or isinstance(out_shape[0], int) or not isinstance(out_shape[1], int):
        raise TraceError(
            f"the network turns images of {list(image_shape)} into a tensor of shape {out_shape}; expected "
            "[batch, classes]"
        )


def _module_name(node: torch.fx.Node) -> str:
    """Return the name of the submodule that made ``node``."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path or f"operation {node.name}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's own warnings (deprecations inside torch, torchvision not installed)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), silent():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
