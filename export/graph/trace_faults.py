"""Says in words why PyTorch could not trace or convert a network, and in which of its modules.

PyTorch names its own symbols and nodes ("Could not guard on data-dependent expression u0", "Error when
translating node %conv2d_1"). The traceback and the traced graph still know the module and the line.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_DATA_DEPENDENT = re.compile(r"data-dependent|unbacked symbol|u\d+ ", re.IGNORECASE)
_FIXED_BATCH = re.compile(
    r"Constraints violated|specialized it to be a constant|was inferred to be a constant"
)
_NODE = re.compile(r"translating node %(\w+).*?target=torch\.ops\.(?P<operator>\w+\.\w+)", re.DOTALL)
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose")
_MOST_SHOWN = 100


def tracing_fault(error: BaseException, network: nn.Module) -> str:
    """Say why `torch.export` failed with ``error``, and in which module of ``network``."""
    reason = first_line(error)
    text = f"{type(error).__name__} {error}"
    if _FIXED_BATCH.search(text):
        return (
            "its code takes the number of images for a constant (a loop over the images of a batch, or their "
            "number as a Python number): write it with tensor operations that hold for any number of images"
        )
    place = _place_in(error, network)
    if "GuardOnDataDependent" in text or _DATA_DEPENDENT.search(reason):
        return (
            f"{place or 'its code'} decides by the values of the image what to compute (an if, a loop or a "
            "Python number that depends on a tensor), which a graph cannot do: compute both ways and choose "
            "with torch.where, or use torch.cond"
        )
    return f"{place}: {reason}" if place else reason


def conversion_fault(error: BaseException, traced: torch.export.ExportedProgram) -> str:
    """Say why `torch.onnx.export` failed with ``error``, and by which module of ``traced``."""
    for node in traced.graph.nodes:
        if _has_variable_groups(node):
            return (
                f"{module_of(node)} computes a convolution whose number of groups is the number of images, "
                "with weights of its own for each image (a conditional convolution); in ONNX the number of "
                "groups is a constant"
            )
    reason = first_line(error)
    match = _NODE.search(f"{reason} {error}")
    if match is None:
        return reason
    # What failed is a part of an operation in the traced graph, with nearly its name: linalg_eig of eigvals.
    word = match["operator"].rpartition(".")[2]
    made_by = [module_of(node) for node in traced.graph.nodes if word in str(node.target)]
    where = made_by[0] if made_by else "it"
    return f"{where} computes {match['operator']}, which PyTorch cannot write as ONNX: replace that operation"


def module_of(node: torch.fx.Node) -> str:
    """Name the submodule that made ``node`` with its class: "layer1.0.attn (Attention)"."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return f"operation {node.name}"
    path, kind = list(stack.values())[-1]
    return f"{path or 'the network'} ({str(kind).rpartition('.')[2]})"


def first_line(error: BaseException) -> str:
    """Return the first line of the cause of ``error``, else of ``error``."""
    cause = error.__cause__ or error
    text = str(cause).strip() or str(error).strip() or type(error).__name__
    return text.splitlines()[0].strip()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep PyTorch from logging and printing the graph that it could not trace."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _has_variable_groups(node: torch.fx.Node) -> bool:
    """Tell whether ``node`` is a convolution whose number of groups depends on the number of images."""
    operator = node.target
    if not isinstance(operator, torch._ops.OpOverload) or not operator.__name__.startswith(_CONVOLUTIONS):
        return False
    for position, argument in enumerate(operator._schema.arguments):
        if argument.name == "groups":
            given = node.args[position] if position < len(node.args) else node.kwargs.get("groups")
            return isinstance(given, torch.fx.Node)
    return False


def _place_in(error: BaseException, network: nn.Module) -> str:
    """Return the innermost module of ``network`` that raised ``error``, and the line; "" if none did."""
    names = {id(module): name for name, module in network.named_modules()}
    kinds = {type(module) for module in network.modules()}
    in_torch = str(Path(torch.__file__).parent)
    found, is_found = "", False
    for frame, line in _frames(error):
        code_of = frame.f_code
        given = frame.f_locals.get(code_of.co_varnames[0]) if code_of.co_argcount else None  # "self"
        if id(given) in names or (isinstance(given, nn.Module) and type(given) in kinds):
            name = names.get(id(given), "")
            file = code_of.co_filename
            is_own = not file.startswith(in_torch)
            if is_found and not is_own:
                continue  # PyTorch's own code around or inside the module's
            code = linecache.getline(file, line).strip()[:_MOST_SHOWN]
            place = f", {Path(file).name}, line {line}: {code}" if is_own else ""
            found, is_found = f"{name or 'the network'} ({type(given).__name__}{place})", is_own
    return found


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames that ``error``, or else its cause, went through, outermost first."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    for raised in seen:
        trace = raised.__traceback__
        while trace is not None:
            yield trace.tb_frame, trace.tb_lineno
            trace = trace.tb_next
