"""Loads custom networks, which the command line names as ``package.module:factory``.

Loading one runs its code, so only the user may ask for it: a checkpoint that names a custom network is
refused until the user has named it too (`registry.register_custom_model`).
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from foldserve.training.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# Every network of the registry takes these; a custom factory need only declare those it uses.
_SHAPE_ARGUMENTS = ("in_channels", "class_count", "height", "width")


def is_import_path(arch: str) -> bool:
    """Return whether ``arch`` has the form ``package.module:factory``."""
    return ":" in arch


def load_factory(arch: str) -> Callable[..., nn.Module]:
    """Import the factory that ``arch`` names; the current folder can be imported from, as by ``python -m``.

    Returns:
        A function of in_channels, class_count, height, width (each passed on if the factory declares it) and
        the factory's own keyword arguments.

    Raises:
        ModelError: there is no such module or function, or importing the module fails.
    """
    module_name, _, factory_name = arch.partition(":")
    if not module_name or not factory_name:
        raise ModelError(f"architecture {arch!r} is incomplete; expected package.module:factory")
    module = _import(module_name, arch)
    factory = getattr(module, factory_name, None)
    if factory is None:
        file = getattr(module, "__file__", None) or module_name
        raise ModelError(f"architecture {arch!r}: {file} has no {factory_name!r}")
    if not callable(factory):
        raise ModelError(
            f"architecture {arch!r} is a {type(factory).__name__}; expected a function that returns a network"
        )

    def create(**arguments: Any) -> nn.Module:
        network = factory(**_declared(factory, arguments))
        if not isinstance(network, nn.Module):
            raise ModelError(
                f"architecture {arch!r} returned a {type(network).__name__}; expected a torch.nn.Module"
            )
        return network

    return create


def _import(module_name: str, arch: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # importing a module may raise any error
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise ModelError(
                f"architecture {arch!r}: there is no module {missing!r} in {folder} or the environment"
            ) from error
        raise ModelError(
            f"architecture {arch!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error


def _declared(factory: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return ``arguments`` without those of the data's shape that ``factory`` does not declare."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names or name not in _SHAPE_ARGUMENTS}
