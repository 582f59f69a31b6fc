"""Loads the graph that the user names: a network by name, a checkpoint, or an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from foldserve.artifact.format import MODEL_FILE
from foldserve.export.errors import SourceError
from foldserve.export.graph.trace import trace
from foldserve.export.inspection.layers import image_input
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.models import MODELS, create_model, register_custom_model

if TYPE_CHECKING:
    from torch import nn

    from foldserve.export.inspection.inspect_config import InspectConfig

_DEFAULT_SHAPE = (1, 28, 28)
_DEFAULT_CLASS_COUNT = 10


@dataclass(frozen=True)
class Target:
    """A graph on images of ``image_shape``; ``parameter_names`` is None if they are not known."""

    title: str
    model: ir.Model
    image_shape: tuple[int, ...]
    parameter_names: frozenset[str] | None


def load_target(config: InspectConfig) -> Target:
    """Load the network that ``config.target`` names; a built-in network precedes a folder of the same name.

    Raises:
        SourceError: it names nothing known, the file cannot be read, or a setting does not apply to it.
        TrainingError: the network cannot be built, or the checkpoint is damaged.
        TraceError: the network cannot be traced.
    """
    path = Path(config.target)
    if config.target in MODELS or (":" in config.target and not path.exists()):
        return _load_network(config)
    if config.network_settings:
        flags = ", ".join(config.network_settings)
        raise SourceError(f"{flags}: only for a network given by name; {config.target} is not one")
    if (path / MODEL_FILE).exists():
        path /= MODEL_FILE
    if path.suffix == ".onnx":
        return _load_file(path, config.input_shape)
    if not path.exists():
        raise SourceError(
            f"{config.target!r} is neither a network ({', '.join(sorted(MODELS))}, or your own as "
            "package.module:factory) nor an existing run folder, checkpoint or .onnx file"
        )
    return _load_checkpoint(path, config)


def _load_network(config: InspectConfig) -> Target:
    register_custom_model(config.target)
    shape = config.input_shape or _DEFAULT_SHAPE
    settings: dict[str, Any] = {"width_factor": config.width, "depth": config.depth}
    settings = {name: value for name, value in settings.items() if value is not None}
    if not config.batch_norm:
        settings["batch_norm"] = False
    network = create_model(
        config.target,
        in_channels=shape[0],
        class_count=config.classes or _DEFAULT_CLASS_COUNT,
        height=shape[1],
        width=shape[2],
        **settings,
    )
    return _trace(config.target, network, shape)


def _load_checkpoint(path: Path, config: InspectConfig) -> Target:
    register_custom_model(config.arch or "")
    checkpoint = load_checkpoint(path)
    shape = checkpoint.image.shape
    if config.input_shape not in {None, shape}:
        raise SourceError(f"--input {config.input}: {path} takes images of {'x'.join(map(str, shape))}")
    return _trace(f"{checkpoint.arch} from {path}", checkpoint.build().network, shape)


def _trace(title: str, network: nn.Module, image_shape: tuple[int, int, int]) -> Target:
    names = frozenset(name for name, _ in network.named_parameters(remove_duplicate=False))
    return Target(title, trace(network.eval(), image_shape).model, image_shape, names)


def _load_file(path: Path, given: tuple[int, ...] | None) -> Target:
    try:
        model = ir.load(path)
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except Exception as error:  # errors of protobuf, onnx and the file system
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"{path} is not an ONNX model, or it is damaged: {reason}") from error
    return Target(str(path), model, file_shape(path, image_input(model), given), None)


def file_shape(path: Path, image: ir.Value, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of the image as in the file, or ``given`` if the file does not fix it.

    Raises:
        SourceError: ``given`` contradicts the file, or the file does not fix a side and none is given.
    """
    sides_in_file = [] if image.shape is None else list(image.shape)[1:]
    # Paddle's exporter writes -1 for a side that is open.
    stored = ["?" if isinstance(side, int) and side < 0 else side for side in sides_in_file]
    if given is not None:
        fits = not stored or (
            len(stored) == len(given)
            and all(not isinstance(side, int) or side == own for side, own in zip(stored, given, strict=True))
        )
        if not fits:
            raise SourceError(f"--input {'x'.join(map(str, given))}: {path} takes images of {stored}")
        return given
    sides = tuple(side for side in stored if isinstance(side, int))
    if not stored or len(sides) < len(stored):
        raise SourceError(
            f"{path} does not fix the shape of its image ({stored}); give it, such as --input 3x224x224"
        )
    return sides
