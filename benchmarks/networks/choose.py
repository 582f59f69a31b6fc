"""`python -m benchmarks.networks.choose`: writes names.txt, the list of networks that is measured.

All of torchvision's classifiers below 2 GiB of weights. Of timm, from each file of `timm/models` whose
networks have batch norm or convolutions beyond the one that cuts patches, the smallest of each family (the
name up to its first digit or underscore), then the next smallest ones of all files in turn until there are
enough; and `_MORE`, kinds that this misses.

The side is the smallest of `_SIDES` at which the network answers, built as it is or for that side.
Run it again after a change of requirements.txt, in the environment `.venv-networks`.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import nn

from benchmarks.networks.names import NAMES_FILE, to_line
from benchmarks.networks.packages import Network, build, import_torchvision

_SIDES = (64, 96, 128, 160, 192, 224, 256, 288, 384)
_TIMM_COUNT = 230
# Layers that only some variants of a family have: EvoNorm, group norm, layer norm, convolutions chosen by
# the image, standardised weights beside batch norm.
_MORE = (
    "mobilenetv4_conv_small_035",
    "nf_resnet26",
    "resnet50_gn",
    "test_convnext2",
    "test_efficientnet_evos",
    "test_efficientnet_ln",
    "tf_efficientnet_cc_b0_4e",
)
_MOST_WEIGHTS = 2**31 // 4  # 2 GiB of float32
# Larger variants of a family show nothing that smaller ones do not, and cost minutes.
_MOST_WEIGHTS_TIMM = 150_000_000
_FAMILY = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Candidate:
    """A network of timm: the file and family that it is of, and its number of weights."""

    name: str
    file: str
    family: str
    weight_count: int


def main() -> int:
    """Write the list and return 0."""
    models = import_torchvision().models
    chosen = [("torchvision", name) for name in models.list_models(module=models)]
    chosen = [(package, name) for package, name in chosen if _weight_count(package, name) < _MOST_WEIGHTS]
    chosen += [("timm", name) for name in sorted({*_choose_timm(), *_MORE})]
    lines = [to_line(network) for each in chosen if (network := _with_side(*each)) is not None]
    NAMES_FILE.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} networks in {NAMES_FILE}")
    return 0


def _choose_timm() -> list[str]:
    candidates = []
    timm = importlib.import_module("timm")
    registry = importlib.import_module("timm.models._registry")
    for name in timm.list_models():
        network = _on_meta("timm", name)
        if network is not None and _is_convolutional(network):
            family = _FAMILY.match(name)
            candidates.append(
                Candidate(
                    name,
                    registry._model_to_module[name],
                    family[0] if family else name,
                    sum(weights.numel() for weights in network.parameters()),
                )
            )
    return choose(candidates)


def choose(candidates: list[Candidate], count: int = _TIMM_COUNT) -> list[str]:
    """Return the names of at least ``count`` networks, if there are as many, of all files and families."""
    by_group: dict[tuple[str, str], list[Candidate]] = {}
    for each in sorted(candidates, key=lambda each: (each.weight_count, each.name)):
        by_group.setdefault((each.file, each.family), []).append(each)
    first = [group[0] for group in by_group.values()]
    by_file: dict[str, list[Candidate]] = {}
    for group in by_group.values():
        for each in group[1:]:
            if each.weight_count < _MOST_WEIGHTS_TIMM:
                by_file.setdefault(each.file, []).append(each)
    more = [
        each
        for turn in zip_longest(
            *(sorted(file, key=lambda each: each.weight_count) for file in by_file.values())
        )
        for each in turn
        if each is not None
    ]
    return sorted(each.name for each in first + more[: max(0, count - len(first))])


def _weight_count(package: str, name: str) -> int:
    network = _on_meta(package, name) or build(package, name)  # some compute with weights when they are built
    return sum(weights.numel() for weights in network.parameters())


def _on_meta(package: str, name: str) -> nn.Module | None:
    try:
        with torch.device("meta"):
            return build(package, name)
    except Exception as error:  # whatever a package's own code raises
        print(f"{package}/{name} cannot be built: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _is_convolutional(network: nn.Module) -> bool:
    kinds = [type(module).__name__ for module in network.modules()]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    return convolutions > 1 or any("BatchNorm" in kind for kind in kinds)


def _with_side(package: str, name: str) -> Network | None:
    reason = ""
    for side in _SIDES:
        for is_sized in (False, True):
            network = Network(package, name, side, is_sized)
            try:
                with torch.inference_mode():
                    logits = network.build()(torch.rand(1, 3, side, side))
                if isinstance(logits, torch.Tensor) and logits.ndim == 2:
                    return network
                reason = "it answers something else than logits"
            except Exception as error:  # whatever a package's own code raises
                reason = str(error).partition("\n")[0]
    print(f"{package}/{name} left out: {reason}", file=sys.stderr)
    return None


if __name__ == "__main__":
    sys.exit(main())
