"""Reads what `torch.save` wrote without running any of its code, whatever else lies beside the weights.

Training scripts save settings (`argparse.Namespace`), numpy scalars and whole modules with the weights. torch
refuses such files when it reads weights alone, as it should: making those objects would run their code. Here
each of their classes and functions is replaced by one that makes an inert `Placeholder`, so that the weights
beside them can be read.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from foldserve.training.torch_file import TorchFileError, UnplainFileError, read_torch_file

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

# Most classes and functions that a file may name.
_MOST_NAMES = 1000
# Modules of the standard library that Python 2 called otherwise.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Most modules of a pickled network that are followed.
_MOST_MODULES = 100_000
# The format before torch 1.6 is a sequence of pickles, of which this one is the content.
_CONTENT_OF_LEGACY = 3


class Placeholder:
    """Stands for an object that was not made; ``state`` is what its attributes would have been set from.

    Attributes:
        kind: the full name of its class or function.
    """

    kind = ""

    def __new__(cls, *_given: Any, **_named: Any) -> Self:
        """Make one, whatever the arguments."""
        return super().__new__(cls)

    def __init__(self, *_given: Any, **_named: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        """Keep ``state``, without setting attributes from it."""
        self.__dict__["state"] = state


def read_torch_weights(path: Path) -> Any:
    """Return the content of ``path``; objects other than tensors and plain types are a `Placeholder` each.

    Raises:
        UnplainFileError: it holds objects that cannot be replaced, or is damaged.
        TorchFileError: it is not a torch file, or is damaged.
        OSError: it cannot be read.
    """
    try:
        return read_torch_file(path)
    except UnplainFileError as error:
        names = _global_names(path)
        if not names:
            raise
        refusal = error
    placeholders: list[Any] = [
        (type("Placeholder", (Placeholder,), {"kind": name}), name) for name in sorted(names)
    ]
    with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # as in `read_torch_file`, whose error says more
            raise refusal from None


def _global_names(path: Path) -> set[str]:
    """Return the full names of all classes and functions that the pickle in ``path`` names."""
    try:
        with path.open("rb") as stream:
            if zipfile.is_zipfile(stream):
                with zipfile.ZipFile(stream) as archive:
                    (entry,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
                    with archive.open(entry) as pickled:
                        return _names_in(pickled)  # type: ignore[arg-type]  # it reads and reads lines
            stream.seek(0)
            for _ in range(_CONTENT_OF_LEGACY):
                _names_in(stream)
            return _names_in(stream)
    except (ValueError, pickle.UnpicklingError, EOFError):  # no such pickle, or a damaged one
        return set()


def _names_in(stream: BinaryIO) -> set[str]:
    names = set()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            # The pickle has Python 2's names; torch looks up Python 3's.
            names.add(f"{_RENAMED.get(module, module)}.{name}")
    if len(names) > _MOST_NAMES:
        raise TorchFileError(f"it names {len(names)} classes; expected at most {_MOST_NAMES}")
    return names


def module_state(value: Placeholder) -> dict[str, torch.Tensor] | None:
    """Return the parameters and buffers of a pickled module by their names; None if it is not a module."""
    found: dict[str, torch.Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", value)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        parts = module.state if isinstance(module, Placeholder) else None
        if not isinstance(parts, dict) or not isinstance(parts.get("_modules"), dict):
            if prefix == "":
                return None
            continue
        unsaved = parts.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, tensor in (parts.get(kind) or {}).items():
                if isinstance(tensor, torch.Tensor) and not (kind == "_buffers" and name in unsaved):
                    found[f"{prefix}{name}"] = tensor
        seen += 1
        if seen < _MOST_MODULES:  # in a damaged file, modules may contain themselves
            waiting += [(f"{prefix}{name}.", inner) for name, inner in parts["_modules"].items()]
    return found
