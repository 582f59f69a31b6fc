"""The list of networks of `make bench-networks`: of every file and family of timm the smallest."""

from __future__ import annotations

from collections import Counter

from benchmarks.networks import factories
from benchmarks.networks.choose import Candidate, choose
from benchmarks.networks.factories import factory_name
from benchmarks.networks.names import from_line, read_names, to_line

CANDIDATES = [
    Candidate("resnet50", "resnet", "resnet", 25),
    Candidate("resnet18", "resnet", "resnet", 11),
    Candidate("resnet34", "resnet", "resnet", 21),
    Candidate("resnext50", "resnet", "resnext", 24),
    Candidate("vgg19", "vgg", "vgg", 143),
    Candidate("vgg11", "vgg", "vgg", 132),
    Candidate("vgg99", "vgg", "vgg", 200_000_000),
]


def test_the_smallest_of_each_family_comes_first_then_files_take_turns() -> None:
    assert choose(CANDIDATES, 1) == ["resnet18", "resnext50", "vgg11"]
    assert choose(CANDIDATES, 5) == ["resnet18", "resnet34", "resnext50", "vgg11", "vgg19"]
    assert "vgg99" not in choose(CANDIDATES, 9)  # too large to be worth its minutes


def test_the_list_covers_both_packages() -> None:
    networks = read_names()
    assert len({network.key for network in networks}) == len(networks)
    counts = Counter(network.package for network in networks)
    assert counts["torchvision"] >= 78
    assert counts["timm"] >= 200
    assert all(from_line(to_line(network)) == network for network in networks)


def test_every_network_has_a_factory_for_export() -> None:
    for network in read_names():
        assert getattr(factories, factory_name(network)).__self__ == network
