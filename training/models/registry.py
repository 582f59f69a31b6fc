"""Maps the names that ``--arch`` accepts to networks."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from foldserve.training.errors import ModelError
from foldserve.training.models.alexnet import AlexNet
from foldserve.training.models.custom_model import is_import_path, load_factory
from foldserve.training.models.lenet import LeNet
from foldserve.training.models.resnet import ResNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

# Each takes in_channels, class_count, height, width and its own keyword arguments.
MODELS: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet, "lenet": LeNet, "resnet": ResNet}


def create_model(arch: str, **arch_args: Any) -> nn.Module:
    """Return the network ``arch`` with fresh weights from torch's global generator.

    Raises:
        ModelError: ``arch`` is not in the registry, or does not accept these arguments.
    """
    if arch not in MODELS:
        raise ModelError(_unknown(arch))
    try:
        return MODELS[arch](**arch_args)
    except ModelError:
        raise
    except TypeError as error:  # an argument that the factory does not have
        raise ModelError(f"architecture {arch!r} cannot be built with {arch_args}: {error}") from error
    except Exception as error:
        if not is_import_path(arch):
            raise
        raise ModelError(f"architecture {arch!r} failed: {type(error).__name__}: {error}") from error


def register_custom_model(arch: str) -> None:
    """Add the custom network ``package.module:factory`` to the registry; do nothing for other names.

    Call it with a name that the user gave, never with one from a file: it runs the module's code.

    Raises:
        ModelError: there is no such module or function.
    """
    if is_import_path(arch) and arch not in MODELS:
        MODELS[arch] = load_factory(arch)


def _unknown(arch: str) -> str:
    if is_import_path(arch):
        return (
            f"architecture {arch!r} is not part of foldserve; if you trust its code, name it: --arch {arch}"
        )
    near = difflib.get_close_matches(arch, MODELS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"architecture {arch!r} is not known; expected one of {', '.join(sorted(MODELS))}{hint}, "
        "or your own as package.module:factory"
    )
