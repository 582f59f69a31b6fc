"""Imports an ONNX file as a network to export, and checks its output at every batch size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from foldserve.export.errors import SourceError, first_line
from foldserve.export.graph.model_bytes import parts_with_weights
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.graph.weights_apart import Weights
from foldserve.export.sources.onnx.logits import LogitsChoice, with_output
from foldserve.export.sources.onnx.normalized_file import NormalizedFile, PreparedFile
from foldserve.export.sources.onnx.onnx_reference import OnnxReference
from foldserve.export.sources.onnx.prepare_graph import prepare
from foldserve.export.verification.parity import BATCH_SIZES
from foldserve.export.verification.probabilities import is_sigmoid_of, is_softmax_of, no_logits_text
from foldserve.export.verification.reference import batch_size_of, bounded_sizes
from foldserve.export.verification.tolerances import reference_tolerance
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.export.sources.onnx.normalized_file import InputLayout
    from foldserve.export.sources.onnx.read import OnnxFile

_SEED = 2
# Part of the largest logit by which float32 may be off in another batch size, since its sums are added up in
# another order. This check finds images that are mixed up; how exact the file is, float64 judges afterwards.
_ROUNDING = 1e-3


def import_onnx(
    file: OnnxFile,
    image: onnx.ValueInfoProto,
    choice: LogitsChoice,
    *,
    image_shape: tuple[int, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    layout: InputLayout,
    is_binary: bool = False,
) -> NormalizedFile:
    """Run the file as given, prepare it for folding, and check that its output is the same at any batch size.

    Raises:
        SourceError: it does not run, does not output logits, is random, or needs a fixed batch size.
        FoldError: a batch norm depends on the batch.
    """
    given = replace(_as_given(file, image, choice.name, mean, std), layout=layout)
    noise = np.random.default_rng(_SEED).integers(0, 256, (max(BATCH_SIZES), *image_shape), dtype=np.uint8)
    ends_in_probabilities = choice.without_softmax is not None or choice.without_sigmoid is not None
    # One batch shows what is left out at the end; what is left is run on all images.
    few = noise[: batch_size_of(noise)] if ends_in_probabilities else noise
    given_output = _given_logits(given, few, may_be_log=ends_in_probabilities)
    logits = given_output
    if choice.without_softmax is not None:
        file = replace(file, model_proto=choice.without_softmax, content=None)
        given = replace(_as_given(file, image, choice.name, mean, std), layout=layout)
        logits = _given_logits(given, noise)
        if not is_softmax_of(given_output, logits[: len(few)]):
            raise SourceError(
                f"the file's {choice.name} ends in a softmax that is not over the classes of each image; "
                "name the tensor that holds the logits with --output"
            )
    if choice.without_sigmoid is not None:
        file = replace(file, model_proto=choice.without_sigmoid, content=None)
        given = replace(_as_given(file, image, choice.name, mean, std), layout=layout)
        logits = _given_logits(given, noise)
        if logits.shape[1] != 1 or not is_sigmoid_of(given_output, logits[: len(few)]):
            raise SourceError(no_logits_text("Sigmoid"))
    if is_binary and logits.shape[1] == 1 and choice.without_softmax is None:
        given = replace(given, is_binary=True)
        logits = given.logits_of(logits)
    class_count = logits.shape[1]
    prepared = prepare(
        file,
        image=image.name,
        logits=choice.name,
        image_shape=image_shape,
        class_count=class_count,
        layout=layout,
        is_binary=given.is_binary,
    )
    imported = replace(given, prepared=prepared, class_count=class_count)
    _check_any_batch(imported, noise, logits)
    return imported


def _as_given(
    file: OnnxFile,
    image: onnx.ValueInfoProto,
    logits: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> NormalizedFile:
    """Return ``file`` as given, not yet prepared."""
    tensor = image.type.tensor_type
    batch = tensor.shape.dim[0]
    outputs = {value.name for value in file.model_proto.graph.output}
    given = file.content
    if given is None or file.external_sha256 or logits not in outputs:
        given = ModelFile(parts_with_weights(with_output(file.model_proto, logits), file.weights))
    return NormalizedFile(
        given=given,
        prepared=PreparedFile(onnx.ModelProto(), Weights(), ModelFile(b"")),
        image=image.name,
        logits=logits,
        takes_pixels=tensor.elem_type == TensorProto.UINT8,
        fixed_batch=int(batch.dim_value) if batch.dim_value > 0 else None,  # -1 is written for any, too
        class_count=0,
        mean=mean,
        std=std,
    )


def _given_logits(
    file: NormalizedFile, noise: NDArray[np.uint8], *, may_be_log: bool = False
) -> NDArray[np.float32]:
    """Return the logits of ``noise``; ``may_be_log``: they may be logarithms of probabilities that are 0."""
    name, count = file.logits, len(noise)
    try:
        reference = OnnxReference(file)
        logits: NDArray[Any] = reference.run(noise)
        # The same batch as before: in another one, sums may be added up in another order.
        again = reference.run(noise[: batch_size_of(noise)])
    except Exception as error:  # ONNX Runtime's own types, or ArtifactError if it cannot load the file
        raise SourceError(
            f"the file does not run on images of {list(noise.shape[1:])}: {first_line(error)}"
        ) from error
    if logits.ndim != 2 or len(logits) != count or logits.dtype != np.float32:
        raise SourceError(
            f"the file's {name} is {logits.dtype} {list(logits.shape)} for {count} images; expected float32 "
            f"logits [{count}, classes]; name another tensor with --output"
        )
    if not (np.isfinite(logits) | (may_be_log & np.isneginf(logits))).all():
        raise SourceError(
            f"the file's {name} holds NaN or infinite values for noise; its weights cannot be used"
        )
    if not np.array_equal(logits[: len(again)], again):
        raise SourceError(
            "the file's logits for the same images differ from run to run: something in it is random"
        )
    return logits


def _check_any_batch(file: NormalizedFile, noise: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    """Compare the prepared, unfolded graph with the given file at every batch size."""
    session: Session | None = None
    for size in bounded_sizes(BATCH_SIZES, file.prepared.image_bytes):
        try:
            session = session or Session(
                file.prepared.file.loadable,
                device="cpu",
                options=RuntimeOptions(arena=False),
                optimised=False,
            )
            feeds = {file.image: file.network_input(noise[:size], np.float32)}
            logits = session.run([session.outputs[0].name], feeds)[0]
        except Exception as error:  # as above
            reason = first_line(error)
        else:
            reason = _difference(logits, expected[:size])
        if reason:
            fixed = file.fixed_batch
            again = (
                f"with a symbolic batch size instead of {fixed}"
                if fixed
                else "with a batch size that is fixed nowhere"
            )
            raise SourceError(
                f"the file cannot be made to take {size} images at once: {reason}; export it again {again}"
            )


def _difference(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
    if logits.shape != expected.shape:
        return f"its logits are {list(logits.shape)}, expected {list(expected.shape)}"
    difference = float(np.abs(logits - expected).max())
    if not difference <= _ROUNDING * float(np.abs(expected).max()) + reference_tolerance(expected):
        return f"its logits differ from those of the given file by up to {difference:.3g}"
    return ""
