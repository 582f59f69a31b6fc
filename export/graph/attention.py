"""Spells out attention that PyTorch's exporter cannot write.

PyTorch's translation of scaled_dot_product_attention takes tensors of four dimensions only, [N, heads, L, E].
Windowed attention has five (NesT), or three with the windows among the images (SAM's encoder).
"""

from __future__ import annotations

import math
from typing import Any

import torch

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_aten = torch.ops.aten


def spell_out_attention(traced: torch.fx.GraphModule) -> None:
    """Replace attention over other than four dimensions by softmax(q k' scale + mask) v, in place.

    What dropout, a causal mask or grouped queries change is left as it is.
    """
    for node in list(traced.graph.nodes):
        if node.target is not _ATTENTION or node.args[0].meta["val"].dim() == 4:
            continue
        given = dict(zip(_ARGUMENTS, node.args, strict=False)) | node.kwargs
        if given.get("dropout_p") or given.get("is_causal") or given.get("enable_gqa"):
            continue
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(_attend(node, given))
        traced.graph.erase_node(node)
    traced.recompile()


def _attend(node: torch.fx.Node, given: dict[str, Any]) -> torch.fx.Node:
    """Insert the operations at the graph's point of insertion and return the last."""
    query, mask, scale = given["query"], given.get("attn_mask"), given.get("scale")
    if scale is None:
        scale = 1 / math.sqrt(query.meta["val"].shape[-1])
    scaled = _insert(node, _aten.mul.Tensor, query, scale)
    scores = _insert(
        node, _aten.matmul.default, scaled, _insert(node, _aten.transpose.int, given["key"], -2, -1)
    )
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        hidden = _insert(node, _aten.logical_not.default, mask)
        scores = _insert(node, _aten.masked_fill.Scalar, scores, hidden, -math.inf)
    elif mask is not None:
        scores = _insert(node, _aten.add.Tensor, scores, mask)
    weights = _insert(node, _aten.softmax.int, scores, -1)
    return _insert(node, _aten.matmul.default, weights, given["value"])


def _insert(replaced: torch.fx.Node, operator: Any, *args: Any) -> torch.fx.Node:
    """Insert ``operator`` with the module's name and trace of the node that it replaces a part of."""
    inserted = replaced.graph.call_function(operator, args)
    inserted.meta = {
        key: value for key, value in replaced.meta.items() if key in ("nn_module_stack", "stack_trace")
    }
    inserted.meta["val"] = operator(
        *(arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args)
    )
    return inserted
