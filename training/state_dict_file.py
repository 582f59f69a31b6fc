"""Reads weights that were made elsewhere: a state dict of `torch.save`, or a .safetensors file.

No code in the file is run. Training scripts wrap state dicts: the first of `_WRAPPERS` is unwrapped, averaged
weights before raw ones, and what DataParallel and torch.compile add to the names is removed. Each such step
adds a remark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from foldserve.text import join_first, quote
from foldserve.training.errors import CheckpointError
from foldserve.training.torch_file import TorchFileError, UnplainFileError, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

# Averaged weights first: a run that keeps both is judged by them.
_WRAPPERS = ("model_ema", "state_dict_ema", "ema", "state_dict", "model_state_dict", "model", "weights")
_PARALLEL, _COMPILED = "module.", "_orig_mod."
# Counts the updates of torch's AveragedModel; no weight.
_AVERAGED_COUNT = "n_averaged"
# Far more than any network that trains here; a larger file is not what was meant.
_MOST_BYTES = 8 * 1024**3


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, and remarks on how they were unwrapped."""

    tensors: dict[str, Tensor]
    remarks: tuple[str, ...] = ()


def read_state_dict(path: Path) -> StateDict:
    """Return the state dict in ``path``, of which every value is finite.

    Raises:
        CheckpointError: the file cannot be read, is no state dict, or holds NaN or infinite values.
    """
    remarks: list[str] = []
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise CheckpointError(
                f"{path} has {size:,} bytes; weights to start from may have {_MOST_BYTES:,}"
            )
        tensors = (
            _read_safetensors(path)
            if path.suffix == ".safetensors"
            else _unwrap(read_torch_file(path), path, remarks)
        )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnplainFileError as error:
        raise CheckpointError(
            f"{path} is not a state dict: it holds objects that would run code when loaded, or it is "
            "damaged; save only the state dict, with torch.save(network.state_dict(), FILE)"
        ) from error
    except TorchFileError as error:
        raise CheckpointError(
            f"{path} is not a torch file, or it is damaged or cut short: {error}"
        ) from error
    tensors = _with_plain_names(tensors, path, remarks)
    check_finite_weights(tensors, path)
    return StateDict(tensors, tuple(remarks))


def check_finite_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that ``tensors``, read from ``path``, hold no NaN and no infinity.

    Raises:
        CheckpointError: one does; names the first ones.
    """
    if bad := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(
            f"{path}: the weights {join_first([quote(name) for name in bad])} hold NaN or infinite values; "
            "take an earlier checkpoint"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415  # needed for these files alone
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return dict(load_file(path))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a number type that torch lacks
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a safetensors file, or it is damaged: {reason}") from error


def _unwrap(payload: Any, path: Path, remarks: list[str]) -> dict[str, Tensor]:
    if not isinstance(payload, dict):
        raise CheckpointError(
            f"{path} holds a {type(payload).__name__}; expected a state dict: tensors by name"
        )
    if payload and all(isinstance(value, torch.Tensor) for value in payload.values()):
        return {str(name): tensor for name, tensor in payload.items()}
    wrappers = [name for name in _WRAPPERS if isinstance(payload.get(name), dict) and payload[name]]
    if not wrappers:
        there = join_first([quote(str(name)) for name in payload]) or "nothing in it"
        raise CheckpointError(
            f"{path} is not a state dict: it has {there}; expected tensors by name, or such a dict under "
            f"{', '.join(_WRAPPERS)}"
        )
    beside = f" rather than {', '.join(wrappers[1:])}" if len(wrappers) > 1 else ""
    remarks.append(f"weights taken from {wrappers[0]!r} in {path.name}{beside}")
    return _unwrap(payload[wrappers[0]], path, remarks)


def _with_plain_names(tensors: Mapping[str, Tensor], path: Path, remarks: list[str]) -> dict[str, Tensor]:
    """Return ``tensors`` under the names that the network itself gives them."""
    named: dict[str, Tensor] = {}
    removed = set()
    for name, tensor in tensors.items():
        if name == _AVERAGED_COUNT:
            continue
        plain = name.replace(_COMPILED, "")  # torch.compile may wrap any part of a network
        if plain != name:
            removed.add(_COMPILED)
        while plain.startswith(_PARALLEL):
            plain = plain.removeprefix(_PARALLEL)
            removed.add(_PARALLEL)
        if plain in named:
            raise CheckpointError(
                f"{path} has {quote(plain)} twice, with and without {' or '.join(sorted(removed))}; expected "
                "the weights of one network"
            )
        named[plain] = tensor
    remarks += [f"removed {prefix!r} from the names of the weights" for prefix in sorted(removed)]
    return named
