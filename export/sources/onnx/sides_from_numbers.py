"""Tells which inputs of an ONNX operation decide by their numbers how large its outputs are.

Of most operations the sides of the outputs follow from the sides of the inputs. NonZero returns as many
places as there are, though, and Reshape what its second input says: if such numbers are computed from an
image, so is what Shape and Size say of the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_OWN_DOMAINS = ("", "ai.onnx")
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
# Operation -> positions of those inputs, in whichever version of the operation has most.
DECIDING_INPUTS: dict[str, tuple[int, ...]] = {
    # As many as are found.
    "NonZero": (0,),
    "Unique": (0,),
    "Compress": (1,),
    "NonMaxSuppression": (0, 1, 2, 3, 4),
    "StringSplit": (0,),
    "StringNormalizer": (0,),
    "ImageDecoder": (0,),
    # As many as an input says.
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1, 2),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "CenterCropPad": (1,),
    "Split": (1,),
    "SplitToSequence": (1,),
    "TopK": (1,),
    "OneHot": (1,),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "AffineGrid": (1,),
    "MaxUnpool": (2,),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "STFT": (1, 2, 3),
    "MelWeightMatrix": (0, 1),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    # Along the axes that an input names.
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    **dict.fromkeys(_REDUCTIONS, (1,)),
    # Which tensor of a sequence: they may be of different sizes.
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
}


def is_own(node: onnx.NodeProto) -> bool:
    """Tell whether ``node`` is one of ONNX's own operations."""
    return node.domain in _OWN_DOMAINS


def deciding_inputs(node: onnx.NodeProto) -> list[str]:
    """Return the names of the inputs of ``node`` whose numbers decide the sides of an output.

    An operation of another domain may do anything: all its inputs count.
    """
    if not is_own(node):
        return list(node.input)
    positions = DECIDING_INPUTS.get(node.op_type, ())
    return [node.input[position] for position in positions if position < len(node.input)]
