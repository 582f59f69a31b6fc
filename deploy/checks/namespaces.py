"""Puts programs on a network of their own, whose links can be cut, with Linux's network namespaces.

A bridge stands for the switch. Each replica has a namespace and a pair of veth interfaces, one end of which
is the replica's `eth0` and the other a port of the bridge. All of it is inside namespaces that `isolated`
makes for a process (ip-netns(8), unshare(1)): the machine's own network is never changed, and when the
process ends, however that is, the kernel removes everything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from deploy.checks.errors import CheckError
from foldserve.demo.children import ending_with_us

if TYPE_CHECKING:
    from collections.abc import Sequence

# link down: what the kernel of the replica sees at once, as if the cable were pulled.
# packets lost: nothing arrives in either direction, and nobody is told; a switch that hangs. Packets go to a
# hardware address that nobody has, which needs nothing of the kernel (`tc netem` is a module that many lack).
# answers lost: requests still arrive, and answers do not; a wrong route.
Cut = Literal["link down", "packets lost", "answers lost"]
CUTS: tuple[Cut, ...] = get_args(Cut)
_Words: TypeAlias = tuple[str, ...]

BRIDGE = "servers"
BRIDGE_ADDRESS = "10.77.0.1"
_TOOLS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
}
# Nobody's: locally administered, and not drawn by the kernel for any of the interfaces.
_NOBODY = "02:00:00:00:00:01"


def isolated(command: Sequence[object]) -> list[str]:
    """Return the command line that runs ``command`` in a network and mounts of its own, as their root.

    Raises:
        CheckError: that is not possible here; the message says what is missing.
    """
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if lacking:
        packages = ", ".join(sorted({_TOOLS[tool] for tool in lacking}))
        raise CheckError(f"needs {', '.join(lacking)} on the path; Debian's packages are {packages}")
    flags = ["--net", "--mount"]
    if os.geteuid() != 0:
        flags += ["--user", "--map-root-user"]
    needed = ("mount -t tmpfs none /run", "ip link add one type bridge", "ip link add two type veth")
    attempt = ["unshare", *flags, "sh", "-c", " && ".join(needed)]
    tried = subprocess.run(attempt, capture_output=True, text=True, check=False)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise CheckError(
            f"cannot make network namespaces here ({last}): needs root with CAP_SYS_ADMIN, or user "
            "namespaces, and a kernel with bridge and veth"
        )
    # In this order, because a process that enters a user namespace no longer ends with its parent.
    return ["unshare", *flags, "--", *ending_with_us(command)]


class Replicas:
    """``count`` namespaces on one bridge, for the process that `isolated` started.

    The bridge, and with it this process, has the address `BRIDGE_ADDRESS`.

    Raises:
        CheckError: a command failed.
    """

    def __init__(self, count: int) -> None:
        self.addresses = tuple(f"10.77.0.{10 + number}" for number in range(count))
        # `ip netns` keeps its names in /run/netns, which this process sees as its own.
        _run("mount", "-t", "tmpfs", "none", "/run")
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{BRIDGE_ADDRESS}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for number, address in enumerate(self.addresses):
            inside = ("ip", "-netns", _name(number))
            _run("ip", "netns", "add", _name(number))
            _run("ip", "link", "add", _port(number), "type", "veth", "peer", "eth0", "netns", _name(number))
            _run("ip", "link", "set", _port(number), "master", BRIDGE, "up")
            _run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _run(*inside, "link", "set", interface, "up")

    def command(self, number: int, command: Sequence[object]) -> list[str]:
        """Return the command line that runs ``command`` on replica ``number``.

        It ends when this process does, by SIGKILL, which also ends what is stopped.
        """
        return [
            *("nsenter", f"--net=/run/netns/{_name(number)}", "--"),
            *("setpriv", "--pdeathsig", "KILL", "--", *map(str, command)),
        ]

    def cut(self, number: int, way: Cut) -> None:
        """Cut the link of replica ``number``."""
        if way == "link down":
            _run("ip", "link", "set", _port(number), "down")
        for program, neighbour in self._misled(number, way):
            _run(*program, "replace", *neighbour, "lladdr", _NOBODY, "nud", "permanent")

    def mend(self, number: int, way: Cut) -> None:
        """Undo `cut`."""
        if way == "link down":
            _run("ip", "link", "set", _port(number), "up")
        for program, neighbour in self._misled(number, way):
            _run(*program, "delete", *neighbour)

    def _misled(self, number: int, way: Cut) -> list[tuple[_Words, _Words]]:
        """Return whose packets go to nobody, as the words of `ip` before and after what to do."""
        answers = ("ip", "-netns", _name(number), "neighbour"), (BRIDGE_ADDRESS, "dev", "eth0")
        requests = ("ip", "neighbour"), (self.addresses[number], "dev", BRIDGE)
        misled: dict[Cut, list[tuple[_Words, _Words]]] = {
            "link down": [],
            "packets lost": [answers, requests],
            "answers lost": [answers],
        }
        return misled[way]


def _name(number: int) -> str:
    return f"replica-{number}"


def _port(number: int) -> str:
    return f"port-{number}"


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"{' '.join(words)} failed: {done.stderr.strip() or done.returncode}")
