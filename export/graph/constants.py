"""Computes whatever no image reaches once, at export, in float64: standardised weights, tables, embeddings.

A network may compute its weights from its parameters at every call: weight standardisation (Qiao et al.,
arXiv:1903.10520; timm's StdConv2d calls ``batch_norm(training=True)`` on the weights), reparametrisations,
tables of relative positions, interpolated position embeddings. For every image the result is the same, so it
becomes a constant: computed in float64 from the stored float32 parameters, and rounded once, by
`foldserve.export.graph.weights`, after batch norm is folded into it.

A value stays computed if it is much larger than the parameters it is made of (it may be cheaper to compute
than to store), is changed in place, or is rounded on the way to a whole number or a narrower type, which
float64 could round otherwise than the network does. So does one of which float32 makes something else: the
network may mean float32's own rounding (w + 3 * 2**22 - 3 * 2**22 is a whole number).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch.export import ExportedProgram
    from torch.fx import Node

# A constant may be this many times as large as the parameters it is made of ...
MAX_GROWTH = 8
# ... or this large whatever it is made of: a table of relative positions is larger than its parameters.
SMALL_BYTES = 1024 * 1024
# Part of a constant's largest number by which float32 may be off: less than a rounding that is meant.
ROUNDING = 1e-3

_FLOAT64 = "foldserve.float64"


def find_constants(traced: ExportedProgram) -> set[Node]:
    """Return the operations of ``traced`` that no image reaches and that may be computed at export."""
    stored = _stored(traced)
    changed = _changed_in_place(traced.graph)
    # Each constant, with the parameters that it is made of.
    origins: dict[Node, frozenset[Node]] = {node: frozenset([node]) for node in stored}
    constants = set()
    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        if node in changed:
            origins.pop(node, None)
        if node in changed or not _is_computable(node) or not all(given in origins for given in inputs):
            continue
        origin = frozenset(entry for given in inputs for entry in origins[given])
        size = sum(_byte_count(given.meta["val"]) for given in origin)
        if _byte_count(node.meta["val"]) > max(SMALL_BYTES, MAX_GROWTH * size):
            continue
        origins[node] = origin
        constants.add(node)
    return constants


def compute_constants(traced: ExportedProgram, constants: set[Node]) -> dict[str, NDArray[np.float64]]:
    """Replace, in ``traced``, float32 results of ``constants`` that other operations use by stored tensors.

    Returns their float64 arrays, by the names that the tensors have in the ONNX graph.
    """
    wanted = [node for node in traced.graph.nodes if node in constants and _is_wanted(node, constants)]
    if not wanted:
        return {}
    values = _compute(traced, constants, wanted, _widened)
    rounded = _compute(traced, constants, wanted, _unchanged)
    arrays = {}
    taken = {spec.target for spec in traced.graph_signature.input_specs}
    for node in wanted:
        if not _is_but_rounded(rounded.pop(node), values[node]):
            continue
        name = _name(node, taken)
        taken.add(name)
        arrays[name] = values[node].contiguous().numpy()
        _store(traced, node, name, values[node].to(torch.float32).contiguous())
    traced.graph.eliminate_dead_code()
    traced.graph_module.recompile()
    return arrays


def keep_float64(graph: ir.Graph, arrays: Mapping[str, NDArray[np.float64]]) -> None:
    """Attach ``arrays`` to the initializers of ``graph`` that `compute_constants` made, for later folds."""
    for name, array in arrays.items():
        if name in graph.initializers:
            graph.initializers[name].meta[_FLOAT64] = array


def float64_of(value: ir.Value) -> NDArray[np.float64] | None:
    """Return the unrounded array of a constant that was computed here; None for any other value."""
    array: NDArray[np.float64] | None = value.meta.get(_FLOAT64)
    return array


@dataclass
class _Results:
    """Results of the operations that are still needed, and how often each will be read again."""

    values: dict[Node, Any]
    reads: dict[Node, int]

    def read(self, node: Node) -> Any:
        return self.values[node]

    def was_read_by(self, node: Node) -> None:
        for given in node.all_input_nodes:
            self.reads[given] -= 1
            if not self.reads[given]:
                self.values.pop(given, None)


def _stored(traced: ExportedProgram) -> dict[Node, torch.Tensor]:
    """Return the tensors that the network stores and does not change, by their placeholders."""
    signature = traced.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    tensors = {}
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        target = spec.target
        if spec.kind == InputKind.USER_INPUT or target is None or target in mutated:
            continue
        tensor = traced.state_dict.get(target, traced.constants.get(target))
        if isinstance(tensor, torch.Tensor):
            tensors[node] = tensor.detach()
    return tensors


def _changed_in_place(graph: torch.fx.Graph) -> set[Node]:
    """Return the values that an operation may change in place, with those that share memory with them."""
    changed: set[Node] = set()
    waiting = []
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            waiting += [node, *node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node not in changed:
            changed.add(node)
            waiting += node.all_input_nodes if _may_share_memory(node) else []
    return changed


def _may_share_memory(node: Node) -> bool:
    """Tell whether the result of ``node`` may be a view of one of its inputs."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    is_view = any(entry.alias_info is not None for entry in node.target._schema.returns)
    return is_view or "dropout" in node.target.__name__  # in eval mode it returns its input


def _is_computable(node: Node) -> bool:
    """Tell whether ``node`` gives the same tensor at every call, exact in float64, if its inputs do."""
    if node.op != "call_function" or not _is_tensors(node.meta.get("val")):
        return False
    if node.target is operator.getitem:
        return True
    return (
        isinstance(node.target, torch._ops.OpOverload)  # anything else is control flow
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and not _keeps_statistics(node, node.target)
        and not _rounds(node)
    )


def _rounds(node: Node) -> bool:
    """Tell whether ``node`` makes whole numbers, truth values or narrower floats of floats."""
    value = node.meta["val"]
    if isinstance(value, tuple | list):  # a maximum with its place, or the parts of a tensor
        return any(_is_narrow(result) for result in value)
    given_floats = any(_is_floating(given.meta.get("val")) for given in node.all_input_nodes)
    return _is_narrow(value) or (given_floats and not value.is_floating_point())


def _is_narrow(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize


def _keeps_statistics(node: Node, function: torch._ops.OpOverload) -> bool:
    """Tell whether a batch norm has running statistics: in training mode it changes them."""
    names = [argument.name for argument in function._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return any(given.get(name) is not None for name in ("running_mean", "running_var"))


def _is_wanted(node: Node, constants: set[Node]) -> bool:
    """Tell whether ``node`` is a float32 tensor, made of others, that a non-constant operation uses."""
    value = node.meta["val"]
    return (
        isinstance(value, torch.Tensor)
        and value.dtype == torch.float32
        and any(user not in constants for user in node.users)
        and bool(node.all_input_nodes)
    )


def _is_but_rounded(rounded: torch.Tensor, exact: torch.Tensor) -> bool:
    """Tell whether float32 computes ``exact`` too, but for its rounding."""
    if rounded.shape != exact.shape:
        return False
    largest = exact.abs().max() if exact.numel() else 0.0
    return bool(((rounded - exact).abs() <= ROUNDING * largest).all())  # false for NaN


def _compute(
    traced: ExportedProgram, constants: set[Node], wanted: list[Node], convert: Callable[[Any], Any]
) -> dict[Node, torch.Tensor]:
    """Return the results of ``wanted``, computed of what ``convert`` makes of each tensor and type.

    Others are dropped as soon as nothing needs them.
    """
    needed = _ancestors(wanted)
    stored = _stored(traced)
    values: dict[Node, Any] = {}
    reads = {node: sum(user in needed for user in node.users) for node in needed}
    results = _Results(values, reads)
    kept = {}
    for node in traced.graph.nodes:
        if node not in needed:
            continue
        if node in stored:
            values[node] = convert(stored[node])
        else:
            assert node in constants
            values[node] = _call(node, results, convert)
            results.was_read_by(node)
        if node in wanted:
            kept[node] = values[node]
        if not reads[node]:
            values.pop(node, None)
    return kept


def _ancestors(nodes: list[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _call(node: Node, results: _Results, convert: Callable[[Any], Any]) -> Any:
    """Call the operation of ``node`` with what ``convert`` makes of its inputs and types."""
    args = torch.fx.node.map_arg(node.args, results.read)
    kwargs = dict(torch.fx.node.map_arg(node.kwargs, results.read))
    if isinstance(node.target, torch._ops.OpOverload) and not node.all_input_nodes:
        names = {argument.name for argument in node.target._schema.arguments}
        if "dtype" in names and _is_floating(node.meta["val"]):
            kwargs.setdefault("dtype", torch.float32)  # PyTorch's default
    with torch.no_grad():
        result = node.target(  # type: ignore[operator]  # only strings are not callable
            *tree_map(convert, args), **tree_map(convert, kwargs)
        )
    return tree_map(convert, result)


def _widened(value: Any) -> Any:
    """Return float64 for float32, whether ``value`` is a tensor or a type; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.float64) if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value


def _unchanged(value: Any) -> Any:
    return value


def _name(node: Node, taken: set[str | None]) -> str:
    """Name a constant after its operation; `foldserve.export.graph.simplify` names those that are weights.

    The exporter makes it an attribute of a module. Before a dot would be the operation's name alone, which
    may be that of a method, such as ``to``.
    """
    name, suffix = f"{node.name}_constant", 0
    while name in taken or hasattr(torch.fx.GraphModule, name):
        suffix += 1
        name = f"{node.name}_constant_{suffix}"
    return name


def _store(traced: ExportedProgram, node: Node, name: str, tensor: torch.Tensor) -> None:
    """Let the users of ``node`` read ``tensor`` instead, a new constant input of ``traced``."""
    graph, specs = traced.graph, traced.graph_signature.input_specs
    placeholders = [entry for entry in graph.nodes if entry.op == "placeholder"]
    position = next(index for index, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT)
    with graph.inserting_before(placeholders[position]):
        constant = graph.placeholder(f"c_{node.name}")
    constant.meta["val"] = node.meta["val"]
    specs.insert(position, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(constant.name), name, None))
    traced.constants[name] = tensor
    node.replace_all_uses_with(constant)


def _is_tensors(value: Any) -> bool:
    entries = value if isinstance(value, tuple | list) else (value,)
    return bool(entries) and all(
        isinstance(entry, torch.Tensor) and all(isinstance(side, int) for side in entry.shape)
        for entry in entries
    )


def _is_floating(value: Any) -> bool:
    entries = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(entry, torch.Tensor) and entry.is_floating_point() for entry in entries)


def _byte_count(value: Any) -> int:
    entries = value if isinstance(value, tuple | list) else (value,)
    return sum(entry.numel() * entry.element_size() for entry in entries)
