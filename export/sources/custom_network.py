"""Loads the user's own network as a source: from its factory, a weights file and flags."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from foldserve.artifact.format import ModelMetadata
from foldserve.export.errors import SourceError, first_line
from foldserve.export.sources.check_output import check_output
from foldserve.export.sources.final_softmax import as_two_classes, leave_out_softmax
from foldserve.export.sources.label_file import check_label_count, read_labels
from foldserve.export.sources.mapped_weights import MappedWeights
from foldserve.export.sources.preprocessing import Preprocessing, image_spec, preprocessing
from foldserve.export.sources.source import Source, tool_version
from foldserve.export.sources.torch_network import ReversedChannels, TorchNetwork
from foldserve.export.sources.verification_images import load_verification_images
from foldserve.export.sources.weight_size import check_module_size
from foldserve.export.sources.weights_file import load_into, read_weights
from foldserve.export.verification.probabilities import TAKEN_AS_LOGITS, check_class_count
from foldserve.training.errors import ModelError
from foldserve.training.models import Normalized, create_model, register_custom_model

if TYPE_CHECKING:
    from torch import nn

    from foldserve.export.config import ExportConfig


def load_custom_network(config: ExportConfig) -> Source:
    """Build ``config.arch``, load its weights, and check that it turns images into logits.

    Raises:
        SourceError: weights, labels, images or numbers do not fit it, or its output cannot be served.
        ModelError: the factory cannot be found or fails.
    """
    arch, weights_path, shape = config.arch, config.weights, config.input_shape
    assert arch is not None
    assert weights_path is not None
    assert shape is not None
    image = image_spec(shape, config.resize, config.fit)
    preparation = preprocessing(config, image.channels)
    remarks = preparation.remarks
    labels = None if config.labels is None else read_labels(config.labels)
    network, arguments = _build(arch, shape, labels)
    check_module_size(network, arch)
    weights = read_weights(weights_path)
    renamed = load_into(network, weights, weights_path, arch=arch, class_count=arguments.get("class_count"))
    weights = replace(weights, tensors={})  # the network has them; a large network fits into memory few times
    network, more = _for_inference(network)
    more = (*renamed, *more)
    module = _normalized(network, preparation).eval()
    mapped = MappedWeights(module)
    more += _take_logits(config, module, image.shape, labels)
    class_count = check_output(module, image.shape)
    if not config.as_logits:
        check_class_count(class_count)
    if labels is None:
        raise SourceError(
            f"--labels FILE is needed (UTF-8, one name per line): {arch} outputs {class_count} classes, and "
            "a state dict does not name them"
        )
    check_label_count(labels, class_count, config.labels)
    verification, said = load_verification_images(config.images, image, labels, config.verify_images)
    provenance = {
        "architecture": arch,
        "weights_sha256": weights.sha256,
        "golden_images": verification.kind,
        "foldserve": tool_version("foldserve"),
    }
    return Source(
        network=TorchNetwork(module, image.shape, mapped),
        metadata=ModelMetadata(
            labels, preparation.mean, preparation.std, image, provenance, preparation.network_channel_order
        ),
        verification=verification,
        suggested_name=arch.rpartition(":")[2],
        facts={
            "architecture": arch,
            "architecture_arguments": arguments,
            "weights": weights_path.name,
            "weights_sha256": weights.sha256,
            "remarks": [*weights.remarks, *more, *remarks, *said],
        },
        summary=f"{arch} with the weights of {weights_path}, {len(labels)} classes",
        remarks=(*weights.remarks, *more, *remarks, *said),
    )


def _take_logits(
    config: ExportConfig, module: Normalized, shape: tuple[int, int, int], labels: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Take off what ``module`` ends in behind its logits; return remarks."""
    if config.as_logits:
        return (TAKEN_AS_LOGITS,)
    remarks = leave_out_softmax(module, shape)
    if remarks or labels is None or len(labels) != 2:
        return remarks
    return as_two_classes(module, shape)


def _build(
    arch: str, shape: tuple[int, int, int], labels: tuple[str, ...] | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network; return it and the arguments offered to its factory, which may take fewer."""
    register_custom_model(arch)
    arguments: dict[str, Any] = {"in_channels": shape[0], "height": shape[1], "width": shape[2]}
    if labels is not None:
        arguments["class_count"] = len(labels)
    try:
        return create_model(arch, **arguments), arguments
    except ModelError as error:
        if labels is None and "class_count" in str(error):  # the factory requires it
            raise SourceError(
                f"--labels FILE is needed (UTF-8, one name per line): {arch} is built for one class per name"
            ) from error
        raise


def _normalized(network: nn.Module, preparation: Preprocessing) -> Normalized:
    """Wrap ``network``, so that it takes pixels as clients send them."""
    mean, std = preparation.mean, preparation.std
    if preparation.reversed_channels:
        return ReversedChannels(network, mean[::-1], std[::-1])
    return Normalized(network, mean, std)


def _for_inference(network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy in eval mode, in float32 and on the CPU; the factory's own module is not changed."""
    try:
        copied = copy.deepcopy(network)
    except Exception as error:  # a module's own __deepcopy__ or an open handle may raise anything
        raise SourceError(
            f"the network cannot be copied ({first_line(error)}); let its factory return a module that "
            "copy.deepcopy accepts"
        ) from error
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in copied.parameters()} - {"float32"}
    said = tuple(f"its {kind} weights are computed in float32" for kind in sorted(kinds))
    return copied.to("cpu", torch.float32).eval(), said
