"""Builds the bytes of ``model.onnx`` from an unfolded graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from foldserve.artifact.format import check_labels
from foldserve.errors import ArtifactError
from foldserve.export.errors import SourceError
from foldserve.export.graph.channel_order import fold_channel_order
from foldserve.export.graph.endings import end_name, find_no_logits
from foldserve.export.graph.exact_means import write_exact_means
from foldserve.export.graph.fold_pass import Fold, FoldPass
from foldserve.export.graph.linear_convolutions import write_linear_convolutions
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.graph.normalise import add_normalisation, take_pixels
from foldserve.export.graph.serialize import add_outputs, serialize_in_parts
from foldserve.export.graph.simplify import simplify
from foldserve.export.graph.weights import Float64Initializers

if TYPE_CHECKING:
    from foldserve.artifact.format import ModelMetadata

# Up to this size the file is kept in memory: to write and read it costs half a second of the processor.
_LARGE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class BuiltModel:
    """An exported file.

    Attributes:
        file: holds ``model.onnx``.
        folds: one entry per batch norm, one for the input's scaling, one for its channels if reordered.
        no_logits: the operation that the network ends in, if its output is not logits; else "".
        has_moved_clips: whether a batch norm changed the bounds of a ReLU or another clip.
    """

    file: ModelFile
    folds: tuple[Fold, ...]
    no_logits: str = ""
    has_moved_clips: bool = False

    @property
    def content(self) -> bytes:
        """The bytes of ``model.onnx``; for a large file they are read from disk each time."""
        return self.file.content


def build_model(model: ir.Model, metadata: ModelMetadata, *, moves_clips: bool = True) -> BuiltModel:
    """Fold, normalise and serialise ``model``, an unfolded graph of logits; it is changed in place.

    The normalisation is added if its input is FP32; a graph of UINT8 pixels has its own. Without
    ``moves_clips`` a batch norm before a ReLU stays as a multiplication and an addition.

    Raises:
        FoldError: a batch norm cannot be folded or rewritten.
        TraceError: the result is not a valid ONNX file, or still holds a batch norm.
        SourceError: there is not one label per class.
    """
    _check_label_count(model, metadata)
    simplify(model)
    reordered = fold_channel_order(model.graph)  # before the weights are held in float64
    weights = Float64Initializers(model.graph)
    folder = FoldPass(model.graph, weights, moves_clips=moves_clips)
    folder.fold_batch_norms()
    scaling = []
    if model.graph.inputs[0].dtype == ir.DataType.UINT8:
        take_pixels(model.graph)
    else:
        scaling = [add_normalisation(model.graph, folder, weights, mean=metadata.mean, std=metadata.std)]
    weights.store()
    write_linear_convolutions(model.graph)
    write_exact_means(model.graph)
    end = find_no_logits(model.graph.outputs[0])
    add_outputs(model.graph, metadata.temperature)
    file = ModelFile(serialize_in_parts(model, metadata.to_props()), _LARGE_BYTES)
    folds = (*folder.folds, *reordered, *scaling)
    return BuiltModel(file, folds, "" if end is None else end_name(end), folder.has_moved_clips)


def _check_label_count(model: ir.Model, metadata: ModelMetadata) -> None:
    shape = model.graph.outputs[0].shape
    assert shape is not None
    class_count = shape[1]
    assert isinstance(class_count, int)
    try:
        check_labels(metadata.labels, class_count)
    except ArtifactError as error:
        raise SourceError(str(error)) from error
