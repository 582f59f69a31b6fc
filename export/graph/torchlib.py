"""Lists the ONNX functions of PyTorch's exporter without parsing their source.

For each export, onnxscript parses the source of some 800 functions to tell the domain of each, which the
exporter never asks for. That takes as long as the rest of the export of a small network.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIST = "get_torchlib_ops"


@dataclass(frozen=True)
class TorchlibFunction:
    """An ONNX function and the PyTorch operator that it computes, with what the exporter reads of both."""

    qualified_name: str
    function: Any
    is_complex: bool


@contextlib.contextmanager
def without_parsing() -> Iterator[None]:
    """Let PyTorch's exporter list its functions by `list_functions`, if it does so as this version does."""
    try:
        # It loads onnxscript.
        lazy = import_module("torch.onnx._internal._lazy_import")
        onnxscript_apis = lazy.onnxscript_apis
        original = getattr(onnxscript_apis, _LIST)
        list_functions()
    except (ImportError, AttributeError):  # another release, in which it takes its time
        yield
        return
    setattr(onnxscript_apis, _LIST, list_functions)
    try:
        yield
    finally:
        setattr(onnxscript_apis, _LIST, original)


def list_functions() -> list[TorchlibFunction]:
    """Return onnxscript's functions, as its ``get_torchlib_ops`` does."""
    from onnxscript.function_libs.torch_lib import ops, registration  # noqa: PLC0415  # takes a second

    del ops  # importing it registers the functions
    return [
        TorchlibFunction(name, function, is_complex)
        for name, overloaded in registration.default_registry.items()
        if not name.startswith("internal::")
        for is_complex, functions in ((False, overloaded.overloads), (True, overloaded.complex))
        for function in functions
    ]
