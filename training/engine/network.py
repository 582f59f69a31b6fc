"""Builds the network of a run, and the function that calls it in training."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from foldserve.errors import DeviceError
from foldserve.training.engine.sync_batch_norm import synchronise_batch_norm
from foldserve.training.errors import ModelError
from foldserve.training.models import MODELS, Normalized, create_model, register_custom_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.distributed import ProcessGroup


def network_arguments(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the arguments of `create_model`: the shape of the data, and the settings of the network.

    Raises:
        ModelError: the architecture is not known, or does not have one of the settings.
    """
    register_custom_model(config.arch)
    arguments: dict[str, Any] = {
        "in_channels": dataset.image.channels,
        "class_count": len(dataset.labels),
        "height": dataset.image.height,
        "width": dataset.image.width,
    }
    is_import_path = ":" in config.arch
    choices = {
        "batch_norm": (config.batch_norm, True),
        "activation": (config.activation, "relu"),
        "dropout": (config.dropout, 0.0),
        "width_factor": (config.width, 1.0),
    }
    for name, (value, usual) in choices.items():
        # Networks of the registry record all arguments; a custom one need not have arguments of these names.
        if value != usual or (not is_import_path and name != "width_factor"):
            arguments[name] = value
    _check_known(config.arch, arguments)
    return arguments


def build_model(
    facts: Checkpoint, config: TrainConfig, device: torch.device, process_group: ProcessGroup
) -> Normalized:
    """Return the model of ``facts`` with fresh weights on ``device``.

    Raises:
        ModelError: the architecture does not accept images of this data set.
    """
    network = create_model(facts.arch, **facts.arch_args)
    if process_group.world_size > 1:
        network = synchronise_batch_norm(network, device)
    model = Normalized(network, facts.mean, facts.std).to(device)
    if config.channels_last:
        # Makes pooling 5 times as fast on the CPU, and a whole step of LeNet 1.3 times as fast.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return model


def training_forward(
    model: Normalized, config: TrainConfig, process_group: ProcessGroup
) -> Callable[[Tensor], Tensor]:
    """Return ``model`` to be called in training: gradients averaged over processes, compiled if asked for."""
    forward: nn.Module = model
    if process_group.world_size > 1:
        # Running statistics are equal in all processes already, since batch norm is over all of them.
        forward = DistributedDataParallel(model, broadcast_buffers=False)
    return _compiled(forward) if config.compile else forward


def _compiled(forward: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return ``forward`` compiled. The first call compiles it, and raises DeviceError if that fails."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415  # takes a second, and only this needs it

    compiled = torch.compile(forward)

    def call(pixels: Tensor) -> Tensor:
        try:
            logits: Tensor = compiled(pixels)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(f"the network cannot be compiled: {reason}; leave out --compile") from error
        return logits

    return call


def _check_known(arch: str, arguments: dict[str, Any]) -> None:
    """Check that a network of the registry has all ``arguments``; a custom factory checks its own."""
    if arch not in MODELS:
        return  # a custom network, or unknown: then create_model lists the known ones
    parameters = inspect.signature(MODELS[arch]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    flags = {"width_factor": "--width", "batch_norm": "--no-batch-norm"}
    for name in arguments:
        if name not in parameters:
            raise ModelError(f"{arch} has no setting {flags.get(name, f'--{name}')}; leave it out")
