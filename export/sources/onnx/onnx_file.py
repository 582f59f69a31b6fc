"""Loads an ONNX file, made elsewhere or by ``foldserve export``, as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx import TensorProto

from foldserve.artifact.format import LOGITS, MODEL_FILE, ModelMetadata
from foldserve.errors import ArtifactError
from foldserve.export.errors import SourceError
from foldserve.export.inspection.target import file_shape
from foldserve.export.sources.label_file import check_label_count, read_labels
from foldserve.export.sources.onnx.control_flow import check_control_flow
from foldserve.export.sources.onnx.import_onnx import import_onnx
from foldserve.export.sources.onnx.input_layout import channels_first, is_channels_last
from foldserve.export.sources.onnx.logits import choose_logits, flat_graph
from foldserve.export.sources.onnx.normalized_file import InputLayout
from foldserve.export.sources.onnx.onnx_network import OnnxNetwork
from foldserve.export.sources.onnx.read import find_image, read_onnx
from foldserve.export.sources.preprocessing import (
    Preprocessing,
    image_spec,
    preprocessing,
    reverses_channels,
)
from foldserve.export.sources.source import Source, tool_version
from foldserve.export.sources.verification_images import load_verification_images
from foldserve.export.verification.probabilities import BINARY, check_class_count

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.export.config import ExportConfig
    from foldserve.export.sources.onnx.read import OnnxFile

# The newest that ONNX Runtime 1.20 reads. A newer file is kept as it is, with a warning.
_NEWEST_OPSET = 21

# A file that takes pixels sees the pixel itself, which is (pixel / 255 - 0) / (1 / 255).
_PIXEL_STD = 1 / 255


def load_onnx_file(config: ExportConfig, path: Path) -> Source:
    """Load ``path``: find its image input and its logits, and make it take any number of images.

    Raises:
        SourceError: the file is damaged, does not turn one image into logits, or needs a fixed batch size; or
            labels do not match.
        FoldError: a batch norm depends on the batch.
    """
    file = read_onnx(path)
    own = _own_metadata(file)
    image = find_image(file)
    shape = file_shape(path, ir.from_proto(channels_first(image)), config.input_shape)
    takes_pixels = image.type.tensor_type.elem_type == TensorProto.UINT8
    is_given = config.resize is not None or config.fit is not None
    spec = own.image if own is not None and not is_given else image_spec(shape, config.resize, config.fit)
    preparation = _preprocessing(config, own, spec.channels, takes_pixels=takes_pixels)
    layout = InputLayout(is_channels_last(image), preparation.reversed_channels)
    is_binary = _is_binary(config)
    choice = choose_logits(
        file.model_proto,
        config.output,
        is_ours=own is not None,
        as_logits=config.as_logits,
        is_binary=is_binary,
    )
    if own is None:  # a network whose torch.cond was exported is proven
        check_control_flow(flat_graph(file.model_proto), image.name, choice.name)
    network_file = import_onnx(
        file,
        image,
        choice,
        image_shape=shape,
        mean=preparation.mean,
        std=preparation.std,
        layout=layout,
        is_binary=is_binary,
    )
    if not config.as_logits:
        check_class_count(network_file.class_count)
    labels = _labels(config, own, network_file.class_count)
    verification, said = load_verification_images(config.images, spec, labels, config.verify_images)
    remarks = (
        *([choice.note] if choice.note else []),
        *_opset_remarks(file),
        *(["its input is [N, H, W, C]; the graph transposes images to it"] if layout.channels_last else []),
        *([BINARY] if network_file.is_binary else []),
        *preparation.remarks,
        *said,
    )
    order = preparation.network_channel_order or (None if own is None else own.network_channel_order)
    provenance = _provenance(file, own, verification.kind)
    facts = {
        "onnx_file": path.name,
        "onnx_sha256": file.sha256,
        "onnx_external_data_sha256": file.external_sha256,
        "producer": file.producer,
        "opset": file.opset,
        "ir_version": file.model_proto.ir_version,
        "input": image.name,
        "input_layout": "NHWC" if layout.channels_last else "NCHW",
        "output": choice.name,
        "fixed_batch": network_file.fixed_batch,
        "reference": "the given file under ONNX Runtime on the CPU, its graph optimisations off",
        "remarks": list(remarks),
    }
    return Source(
        network=OnnxNetwork(network_file),
        metadata=ModelMetadata(
            labels,
            preparation.mean,
            preparation.std,
            spec,
            provenance,
            order,
            temperature=own.temperature if own is not None and choice.name == LOGITS else 1.0,
        ),
        verification=verification,
        suggested_name=_suggested_name(path),
        facts=facts,
        summary=f"{path}, opset {file.opset}, made by {file.producer}, {len(labels)} classes",
        remarks=remarks,
    )


def _is_binary(config: ExportConfig) -> bool:
    """Tell whether ``--labels`` has two names: then one logit is that of the second."""
    return not config.as_logits and config.labels is not None and len(read_labels(config.labels)) == 2


def _own_metadata(file: OnnxFile) -> ModelMetadata | None:
    """Return the metadata in the file if ``foldserve export`` wrote it."""
    props = {entry.key: entry.value for entry in file.model_proto.metadata_props}
    if "foldserve.schema" not in props:
        return None
    try:
        return ModelMetadata.from_props(props)
    except ArtifactError as error:
        raise SourceError(f"{file.path}: {error}") from error


def _provenance(file: OnnxFile, own: ModelMetadata | None, golden_images: str) -> dict[str, str]:
    """Describe where the file came from; one that ``foldserve export`` wrote keeps its provenance."""
    origin = {
        "onnx_sha256": file.sha256,
        "producer": file.producer,
        "opset": str(file.opset),
        "foldserve": tool_version("foldserve"),
    }
    return {**(origin if own is None else own.provenance), "golden_images": golden_images}


def _preprocessing(
    config: ExportConfig, own: ModelMetadata | None, channels: int, *, takes_pixels: bool
) -> Preprocessing:
    if not takes_pixels:
        return preprocessing(config, channels)
    if config.mean is not None or config.std is not None or config.pixel_range is not None:
        raise SourceError(
            "--mean, --std and --pixel-range cannot be used with a file of UINT8 pixels: it contains its "
            "normalisation"
        )
    if own is not None:
        if config.channel_order is not None:
            raise SourceError(
                "--channel-order cannot be used with a file that foldserve export wrote: its graph takes the "
                "channels as clients send them"
            )
        return Preprocessing(own.mean, own.std)
    said = "its input is UINT8 pixels; no normalisation is added"
    return Preprocessing(
        (0.0,) * channels, (_PIXEL_STD,) * channels, reverses_channels(config, channels), (said,)
    )


def _labels(config: ExportConfig, own: ModelMetadata | None, class_count: int) -> tuple[str, ...]:
    if config.labels is not None:
        labels = read_labels(config.labels)
    elif own is not None:
        labels = own.labels
    else:
        raise SourceError(
            f"--labels FILE is needed (UTF-8, one name per line): the file outputs {class_count} classes and "
            "does not name them"
        )
    check_label_count(labels, class_count, config.labels)
    return labels


def _opset_remarks(file: OnnxFile) -> tuple[str, ...]:
    if file.opset <= _NEWEST_OPSET:
        return ()
    return (
        f"warning: opset {file.opset} is kept; ONNX Runtime 1.20 reads up to {_NEWEST_OPSET}, so the file "
        "needs a later version",
    )


def _suggested_name(path: Path) -> str:
    """Return the file's name without suffix, or the model's name if it is in the folder of a version."""
    absolute = path.resolve()
    if absolute.name == MODEL_FILE and absolute.parent.name.isdigit():
        return absolute.parent.parent.name
    return absolute.stem
