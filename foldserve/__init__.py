"""Trains convolutional networks, exports them with batch norm folded in, and serves exactly what was trained.

Public names are imported on first use, so that a client loads no training framework.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foldserve.local.local_model import LocalModel
    from foldserve.serving.client.async_client import AsyncClient
    from foldserve.serving.client.sync_client import Client

    __version__: str

__all__ = ["AsyncClient", "Client", "LocalModel", "__version__"]

_MODULES = {
    "AsyncClient": "foldserve.serving.client.async_client",
    "Client": "foldserve.serving.client.sync_client",
    "LocalModel": "foldserve.local.local_model",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        return version("foldserve")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
