"""Matches the names of saved weights with those of the network that they are loaded into.

A wrapper leaves its name in those of the weights: DataParallel ``module``, torch.compile ``_orig_mod``,
around the whole network or a part of it (``features.module.0.weight``). ``torch.nn.utils`` saves weight and
spectral norm under other names than ``torch.nn.utils.parametrizations``; the numbers are the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names of the tensors of weight {w} in module {m}: by torch.nn.utils, by torch.nn.utils.parametrizations.
_NORMS = {
    "weight norm": (
        ("{m}{w}_g", "{m}parametrizations.{w}.original0"),
        ("{m}{w}_v", "{m}parametrizations.{w}.original1"),
    ),
    "spectral norm": (
        ("{m}{w}_orig", "{m}parametrizations.{w}.original"),
        ("{m}{w}_u", "{m}parametrizations.{w}.0._u"),
        ("{m}{w}_v", "{m}parametrizations.{w}.0._v"),
    ),
}
_NORMED = re.compile(
    r"(?P<m>(?:.*\.)?)(?:parametrizations\.(?P<new>[^.]+)\.original0?|(?P<old>[^.]+)_(?:g|orig))", re.DOTALL
)


def without_prefixes(tensors: Mapping[str, Tensor], remarks: list[str]) -> dict[str, Tensor]:
    """Remove the prefixes that every name has because the whole network was wrapped."""
    named = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    for wrapper in (*WRAPPERS, *WRAPPERS):  # each may stand outside the other
        prefix = f"{wrapper}."
        if named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
            remarks.append(f"removed the prefix {prefix!r} from the name of every weight")
    return named


def fit_names(tensors: Mapping[str, Tensor], own: Collection[str], remarks: list[str]) -> dict[str, Tensor]:
    """Rename ``tensors`` as the network's ``own`` weights, where their names say the same in another way."""
    for rename, remark in (
        (_without_inner_wrappers, "removed the names of wrappers ({}) inside the names of weights"),
        (_with_norm_names, "matched the names of {} as saved by an older or newer PyTorch"),
        (_without_common_prefix, "removed the prefix {!r} from the name of every weight"),
    ):
        renamed, what = rename(list(tensors), own)
        if what and len(set(renamed.values())) == len(renamed):
            tensors = {renamed[name]: tensor for name, tensor in tensors.items()}
            remarks.append(remark.format(what))
    return dict(tensors)


def _without_wrappers(name: str, own: Collection[str]) -> str:
    """Return ``name`` without the wrappers in it, if the network has it so, and does not have it as it is."""
    if name in own:
        return name
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(parts) if ".".join(parts) in own else name


def _without_inner_wrappers(names: list[str], own: Collection[str]) -> tuple[dict[str, str], str]:
    renamed = {name: _without_wrappers(name, own) for name in names}
    removed = {
        part for name, new in renamed.items() if name != new for part in name.split(".") if part in WRAPPERS
    }
    return renamed, ", ".join(sorted(removed))


def _with_norm_names(names: list[str], own: Collection[str]) -> tuple[dict[str, str], str]:
    renamed, found = {name: name for name in names}, {}
    for name in own:
        match = _NORMED.fullmatch(name)
        if match is None:
            continue
        place = {"m": match["m"], "w": match["new"] or match["old"]}
        for norm, spellings in _NORMS.items():
            old, new = ([text.format(**place) for text in side] for side in zip(*spellings, strict=True))
            for given, wanted in ((old, new), (new, old)):
                if all(each in renamed for each in given) and all(each in own for each in wanted):
                    renamed |= dict(zip(given, wanted, strict=True))
                    found[norm] = True
    return renamed, " and ".join(found)


def _without_common_prefix(names: list[str], own: Collection[str]) -> tuple[dict[str, str], str]:
    """Remove the first part of every name (``model.``, ``net.``) if the network has all that are left."""
    same = {name: name for name in names}
    first = {name.partition(".")[0] for name in names}
    if len(first) != 1 or not all("." in name for name in names) or any(name in own for name in names):
        return same, ""
    prefix = f"{first.pop()}."
    renamed = {name: name.removeprefix(prefix) for name in names}
    return (renamed, prefix) if all(name in own for name in renamed.values()) else (same, "")
