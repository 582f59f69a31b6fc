"""Reads weights from a file and loads them into a network, if names and shapes match and all are finite.

The file is a .safetensors file, or a state dict written by `torch.save`, read without running its code.
Training scripts save more: the first of `_WRAPPERS` is unwrapped, averaged weights before raw ones, and
settings, the optimizer and numbers beside the weights are left out. `weight_names` removes what wrappers
added to the names. Each such step adds a remark.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from foldserve.export.errors import SourceError, first_line
from foldserve.export.sources.file_kind import refuse_other_kinds
from foldserve.export.sources.source import sha256_of
from foldserve.export.sources.weight_names import WRAPPERS, fit_names, without_prefixes
from foldserve.training.torch_file import TorchFileError, UnplainFileError
from foldserve.training.torch_weights import Placeholder, module_state, read_torch_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

# Averaged weights first: a run that keeps both is evaluated by them.
_WRAPPERS = (
    *("model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model", "params_ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module"),
)
# Deepest nesting of wrappers that is followed.
_MOST_DEPTH = 5
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
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"--weights {path} cannot be read: {error.strerror or error}") from error
    refuse_other_kinds(path)
    if path.suffix == ".onnx":
        raise SourceError(
            f"--weights {path} is an ONNX file, which contains its network: export it without --arch"
        )
    remarks: list[str] = []
    versions: dict[str, int] = {}
    if path.suffix == ".safetensors" or _is_safetensors(content):
        tensors = _read_safetensors(path, content)
    else:
        state = _unwrap(_read_torch(path), path, remarks)
        tensors, versions = _tensors_of(state, path, remarks), _versions_of(state)
    tensors = without_prefixes(tensors, remarks)
    _check_finite(tensors, path)
    return Weights(tensors, sha256_of(content), tuple(remarks), versions)


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
    versions = _versions_of(state) | _fit_versions(weights.versions, _versions_of(state))
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
    is_older = any(versions[name] != version for name, version in _versions_of(state).items())
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


def _versions_of(state: Any) -> dict[str, int]:
    """Return the versions in a state dict by the names of modules; those of a file are not trusted."""
    metadata = getattr(state, "_metadata", None)
    entries = metadata.items() if isinstance(metadata, dict) else ()
    return {
        name: entry["version"]
        for name, entry in entries
        if isinstance(name, str) and isinstance(entry, dict) and type(entry.get("version")) is int
    }


def _fit_versions(given: Mapping[str, int], own: Mapping[str, int]) -> dict[str, int]:
    """Return those of the ``given`` versions whose modules the network has, by the names that it has."""
    fitted = {}
    for name, version in given.items():
        plain = name if name in own else ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in own:
            fitted[plain] = version
    return fitted


def _is_safetensors(content: bytes) -> bool:
    """Tell whether ``content`` begins as a safetensors file: the length of a JSON object, and its brace."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content)


def _read_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415  # needed for these files alone
    from safetensors.torch import load  # noqa: PLC0415

    try:
        return dict(load(content))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a number type that torch lacks
        raise SourceError(f"{path} is not a safetensors file, or it is damaged: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        return read_torch_weights(path)
    except UnplainFileError as error:
        raise SourceError(
            f"{path} is not a state dict: it holds objects that would run code when loaded, or it is "
            "damaged; save only the state dict, with torch.save(network.state_dict(), FILE)"
        ) from error
    except TorchFileError as error:
        raise SourceError(f"{path} is not a torch file, or it is damaged or cut short: {error}") from error
    except OSError as error:
        raise SourceError(f"--weights {path} cannot be read: {error.strerror or error}") from error


def _unwrap(payload: Any, path: Path, remarks: list[str], depth: int = 0) -> Mapping[str, Any]:
    """Return the state dict in ``payload``, which may be nested in dicts or be that of a pickled module."""
    if isinstance(payload, Placeholder):
        state = module_state(payload)
        if not state:
            raise SourceError(f"{path} holds a {payload.kind}; expected a state dict: tensors by name")
        remarks.append(f"weights taken out of a pickled {payload.kind}, none of whose code was run")
        return state
    if not isinstance(payload, dict):
        raise SourceError(f"{path} holds a {type(payload).__name__}; expected a state dict: tensors by name")
    if str(payload.get("format", "")).startswith("foldserve."):
        raise SourceError(
            f"{path} is a checkpoint of `foldserve train`, which contains its architecture; export it with "
            f"foldserve export {path}"
        )
    wrappers = [name for name in _WRAPPERS if _holds_weights(payload.get(name), _MOST_DEPTH - depth)]
    if wrappers:
        beside = f" rather than {', '.join(wrappers[1:])}" if len(wrappers) > 1 else ""
        remarks.append(f"weights taken from {wrappers[0]!r} in {path.name}{beside}")
        return _unwrap(payload[wrappers[0]], path, remarks, depth + 1)
    tensors = [name for name, value in payload.items() if isinstance(value, torch.Tensor)]
    if not tensors:
        raise SourceError(
            f"{path} is not a state dict: it has {_first([str(name) for name in payload]) or 'nothing in it'}"
            f"; expected tensors by name, or one under {', '.join(_WRAPPERS)}"
        )
    return payload


def _holds_weights(value: Any, depth: int) -> bool:
    """Tell whether ``value`` is a state dict or a pickled module, or a dict that wraps one."""
    if isinstance(value, Placeholder):
        return bool(module_state(value))
    if not isinstance(value, dict) or depth < 1:
        return False
    return any(isinstance(tensor, torch.Tensor) for tensor in value.values()) or any(
        _holds_weights(value.get(name), depth - 1) for name in _WRAPPERS
    )


def _tensors_of(state: Mapping[str, Any], path: Path, remarks: list[str]) -> dict[str, Tensor]:
    """Return the tensors in a state dict; numbers and texts beside them are left out, with a remark.

    Raises:
        SourceError: one of them is an object that may stand for a tensor, but could not be read.
    """
    others = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
    if unread := [
        f"{name} ({value.kind})" for name, value in others.items() if isinstance(value, Placeholder)
    ]:
        raise SourceError(
            f"{path}: {_first(unread)} cannot be read without running code; save plain tensors, with "
            "torch.save(network.state_dict(), FILE)"
        )
    left_out = [str(name) for name in others if not str(name).endswith("_extra_state")]
    if left_out:
        remarks.append(f"left out {_first(left_out)} in {path.name}, which are no tensors")
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise SourceError(
            f"{path}: the weights {_first(bad)} hold NaN or infinite values; take an earlier checkpoint"
        )


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
