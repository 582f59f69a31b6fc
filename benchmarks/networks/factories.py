"""Offers every network as a factory: ``foldserve export --arch benchmarks.networks.factories:NAME``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.networks.packages import Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_NAME = re.compile(r"(?P<package>torchvision|timm)__(?P<name>\w+)__(?P<side>\d+)(?P<sized>s?)")


def factory_name(network: Network) -> str:
    """Return the name under which this module has the network's factory."""
    sized = "s" if network.is_sized else ""
    return f"{network.package}__{network.name}__{network.side}{sized}"


def __getattr__(name: str) -> Callable[[], nn.Module]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise AttributeError(name)
    return Network(found["package"], found["name"], int(found["side"]), found["sized"] == "s").build
