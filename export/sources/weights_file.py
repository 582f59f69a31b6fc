"""Reads weights from a file and loads them into a network, if names and shapes match and all are finite.

`foldserve.training.state_dict_file` reads the file; `weight_names` removes what wrappers added to the names.
Each such step adds a remark.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from foldserve.export.errors import SourceError, first_line
from foldserve.export.sources.file_kind import refuse_other_kinds
from foldserve.export.sources.weight_names import WRAPPERS, fit_names, without_prefixes
from foldserve.training.errors import CheckpointError
from foldserve.training.state_dict_file import read_state_dict, versions_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

# Counters of batch norm and of averaged models: they do not affect the output.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file's SHA-256, and remarks on how they were unwrapped.

    ``versions`` are those of the modules that saved them, by the modules' names; empty if they are not known.
    """

    tensors: dict[str, Tensor]
    sha256: str
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)


def read_weights(path: Path) -> Weights:
    """Read a state dict.

    Raises:
        SourceError: the file cannot be read, is not a state dict, or holds values that are not finite.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"--weights {path} cannot be read: {error.strerror or error}") from error
    refuse_other_kinds(path)
    if path.suffix == ".onnx":
        raise SourceError(
            f"--weights {path} is an ONNX file, which contains its network: export it without --arch"
        )
    try:
        state = read_state_dict(path)
    except CheckpointError as error:
        raise SourceError(str(error)) from error
    remarks = list(state.remarks)
    tensors = without_prefixes(state.tensors, remarks)
    return Weights(tensors, sha256, tuple(remarks), state.versions)


def load_into(
    network: nn.Module, weights: Weights, path: Path, *, arch: str, class_count: int | None
) -> tuple[str, ...]:
    """Load all of ``weights`` into ``network``, made by ``arch`` for ``class_count`` labels, in place.

    Returns:
        Remarks on how names were matched.

    Raises:
        SourceError: a weight is missing, has another shape, or does not belong to the network.
    """
    state = network.state_dict()
    own = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    if lazy := [name for name, tensor in own.items() if is_lazy(tensor)]:
        raise SourceError(
            f"{arch} has lazy layers without shapes ({_first(lazy)}); let the factory run it once"
        )
    remarks: list[str] = []
    given = fit_names(weights.tensors, own, remarks)
    versions = versions_of(state) | _fit_versions(weights.versions, versions_of(state))
    shared = _names_sharing_memory(own)
    missing = [
        name
        for name in own
        if name not in given and not name.endswith(_COUNTERS) and not shared[name] & given.keys()
    ]
    extra = [name for name in given if name not in own and not name.endswith(_COUNTERS)]
    misshaped = [
        f"{name} is {list(given[name].shape)} in the file and {list(own[name].shape)} in the network"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    # Weights of an earlier version of a module are converted by the module's own code, if it has any.
    is_older = any(versions[name] != version for name, version in versions_of(state).items())
    if (missing or extra or misshaped) and not (is_older and _is_loaded(network, given, versions)):
        found = [f"missing {_with_near_misses(missing, extra)}"] if missing else []
        found += [f"not in the network {_first(extra)}"] if extra else []
        found += [f"of another shape {_first(misshaped)}"] if misshaped else []
        asked = f" (built for {class_count} classes, one per label)" if misshaped and class_count else ""
        raise SourceError(
            f"{path} does not fit {arch}{asked}: {len(missing) + len(extra) + len(misshaped)} of {len(own)} "
            f"weights differ: {'; '.join(found)}"
        )
    if missing or extra or misshaped:
        return (*remarks, "its modules converted weights that an earlier version of them had saved")
    # The file may omit counters, and tensors that share memory with another: these are filled in.
    complete = {name: given.get(name, tensor) for name, tensor in state.items()}
    complete |= {
        name: given[next(iter(shared[name] & given.keys()))]
        for name in own
        if name not in given and shared[name] & given.keys()
    }
    try:
        network.load_state_dict(_with_versions(complete, versions))
    except Exception as error:  # modules load their weights by code of their own
        raise SourceError(f"{arch} does not load the weights of {path}: {first_line(error)}") from error
    return tuple(remarks)


def _is_loaded(network: nn.Module, tensors: Mapping[str, Tensor], versions: Mapping[str, int]) -> bool:
    """Load ``tensors`` by the network's own code, which may convert them; tell whether all of them were."""
    try:
        network.load_state_dict(_with_versions(tensors, versions))
    except Exception:  # as above; the caller says what does not fit
        return False
    return True


def _with_versions(tensors: Mapping[str, Any], versions: Mapping[str, int]) -> OrderedDict[str, Any]:
    """Return a state dict with the versions of modules as `torch.nn.Module.state_dict` adds them."""
    state = OrderedDict(tensors)
    state._metadata = {name: {"version": version} for name, version in versions.items()}  # type: ignore[attr-defined]
    return state


def _fit_versions(given: Mapping[str, int], own: Mapping[str, int]) -> dict[str, int]:
    """Return those of the ``given`` versions whose modules the network has, by the names that it has."""
    fitted = {}
    for name, version in given.items():
        plain = name if name in own else ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in own:
            fitted[plain] = version
    return fitted


def _names_sharing_memory(own: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Return for each name the other names of the same tensor (safetensors store tied weights once)."""
    by_place: dict[tuple[int, tuple[int, ...], tuple[int, ...]], set[str]] = {}
    places = {name: (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) for name, tensor in own.items()}
    for name, place in places.items():
        by_place.setdefault(place, set()).add(name)
    return {name: by_place[place] - {name} if place[0] else set() for name, place in places.items()}


def _with_near_misses(missing: list[str], extra: list[str]) -> str:
    shown = []
    for name in missing[:_SHOWN]:
        inside = [other for other in extra if other.endswith(f".{name}") or name.endswith(f".{other}")]
        near = inside or difflib.get_close_matches(name, extra, n=1, cutoff=0.8)
        shown.append(f"{name} (the file has {near[0]})" if near else name)
    rest = len(missing) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def _first(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
