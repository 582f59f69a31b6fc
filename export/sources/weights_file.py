"""Reads weights from a file and loads them into a network, if names and shapes match and all are finite.

The file is a state dict written by `torch.save`, read without running its code, or a .safetensors file.
Training scripts wrap state dicts: the first of `_WRAPPERS` is unwrapped, averaged weights before raw ones,
and the prefixes of DataParallel and torch.compile are removed. Each such step adds a remark.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from foldserve.export.errors import SourceError
from foldserve.export.sources.source import sha256_of
from foldserve.training.torch_file import TorchFileError, UnplainFileError, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

# Averaged weights first: a run that keeps both is evaluated by them.
_WRAPPERS = ("model_ema", "state_dict_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
# Counters of batch norm and of averaged models: they do not affect the output.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file's SHA-256, and remarks on how they were unwrapped."""

    tensors: dict[str, Tensor]
    sha256: str
    remarks: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """Read a state dict.

    Raises:
        SourceError: the file cannot be read, is not a state dict, or holds values that are not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"--weights {path} cannot be read: {error.strerror or error}") from error
    remarks: list[str] = []
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path, content)
    else:
        tensors = _unwrap(_read_torch(path), path, remarks)
    tensors = _without_prefixes(tensors, remarks)
    _check_finite(tensors, path)
    return Weights(tensors, sha256_of(content), tuple(remarks))


def load_into(
    network: nn.Module, weights: Weights, path: Path, *, arch: str, class_count: int | None
) -> None:
    """Load all of ``weights`` into ``network``, made by ``arch`` for ``class_count`` labels, in place.

    Raises:
        SourceError: a weight is missing, has another shape, or does not belong to the network.
    """
    own = network.state_dict()
    if lazy := [name for name, tensor in own.items() if is_lazy(tensor)]:
        raise SourceError(
            f"{arch} has lazy layers without shapes ({_first(lazy)}); let the factory run it once"
        )
    given = weights.tensors
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
    if missing or extra or misshaped:
        found = [f"missing {_with_near_misses(missing, extra)}"] if missing else []
        found += [f"not in the network {_first(extra)}"] if extra else []
        found += [f"of another shape {_first(misshaped)}"] if misshaped else []
        asked = f" (built for {class_count} classes, one per label)" if misshaped and class_count else ""
        raise SourceError(
            f"{path} does not fit {arch}{asked}: {len(missing) + len(extra) + len(misshaped)} of {len(own)} "
            f"weights differ: {'; '.join(found)}"
        )
    # The file may omit counters, and tensors that share memory with another: these are filled in.
    complete = {name: given.get(name, own[name]) for name in own}
    complete |= {
        name: given[next(iter(shared[name] & given.keys()))]
        for name in own
        if name not in given and shared[name] & given.keys()
    }
    network.load_state_dict(complete)


def _read_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415  # needed for these files alone
    from safetensors.torch import load  # noqa: PLC0415

    try:
        return dict(load(content))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a number type that torch lacks
        raise SourceError(f"{path} is not a safetensors file, or it is damaged: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        return read_torch_file(path)
    except UnplainFileError as error:
        raise SourceError(
            f"{path} is not a state dict: it holds objects that would run code when loaded, or it is "
            "damaged; save only the state dict, with torch.save(network.state_dict(), FILE)"
        ) from error
    except TorchFileError as error:
        raise SourceError(f"{path} is not a torch file, or it is damaged or cut short: {error}") from error
    except OSError as error:
        raise SourceError(f"--weights {path} cannot be read: {error.strerror or error}") from error


def _unwrap(payload: Any, path: Path, remarks: list[str]) -> dict[str, Tensor]:
    if isinstance(payload, dict) and str(payload.get("format", "")).startswith("foldserve."):
        raise SourceError(
            f"{path} is a checkpoint of `foldserve train`, which contains its architecture; export it with "
            f"foldserve export {path}"
        )
    if (
        isinstance(payload, dict)
        and payload
        and all(isinstance(value, torch.Tensor) for value in payload.values())
    ):
        return {str(name): tensor for name, tensor in payload.items()}
    if not isinstance(payload, dict):
        raise SourceError(f"{path} holds a {type(payload).__name__}; expected a state dict: tensors by name")
    wrappers = [name for name in _WRAPPERS if isinstance(payload.get(name), dict) and payload[name]]
    if not wrappers:
        raise SourceError(
            f"{path} is not a state dict: it has {_first([str(name) for name in payload]) or 'nothing in it'}"
            f"; expected tensors by name, or one under {', '.join(_WRAPPERS)}"
        )
    beside = f" rather than {', '.join(wrappers[1:])}" if len(wrappers) > 1 else ""
    remarks.append(f"weights taken from {wrappers[0]!r} in {path.name}{beside}")
    return _unwrap(payload[wrappers[0]], path, remarks)


def _without_prefixes(tensors: Mapping[str, Tensor], remarks: list[str]) -> dict[str, Tensor]:
    named = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    for prefix in (*_PREFIXES, *_PREFIXES):  # each may stand outside the other
        if named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
            remarks.append(f"removed the prefix {prefix!r} from the name of every weight")
    return named


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
