"""Reads names.txt: the networks that are measured, a line each, as `choose` wrote it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.networks.packages import Network

NAMES_FILE = Path(__file__).with_name("names.txt")


def read_names(path: Path = NAMES_FILE) -> list[Network]:
    """Return the networks of ``path``, in its order."""
    return [from_line(line) for line in path.read_text().splitlines()]


def to_line(network: Network) -> str:
    """Return the network as a line: package/name side, and "sized" if its side is fixed when it is built."""
    return f"{network.key} {network.side}{' sized' if network.is_sized else ''}"


def from_line(line: str) -> Network:
    """Return the network of a line of `to_line`."""
    key, side, *sized = line.split()
    package, _, name = key.partition("/")
    return Network(package, name, int(side), sized == ["sized"])
