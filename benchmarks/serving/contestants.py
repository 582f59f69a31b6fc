"""Knows the servers to compare, and the command line that starts each."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.serving.errors import ContestantMissingError
from benchmarks.serving.mosec_environment import mosec_python
from foldserve.runtime.cpus import usable_cpus
from foldserve.serving.config import ServeConfig

if TYPE_CHECKING:
    from benchmarks.serving.networks import Network

Transport = Literal["native", "grpcio"]


@dataclass(frozen=True)
class Contestant:
    """A server to start. ``flags`` are foldserve's beyond its defaults.

    The bare ones run the model in the smallest loop, the echoes only send an answer that was made before;
    first_come is foldserve with the queue of `benchmarks.fairness`; ``planted_us`` slows foldserve down by so
    many microseconds of CPU per request, to see that a check notices.
    """

    kind: Literal[
        "foldserve", "first_come", "bare_native", "bare_aio", "bare_mosec", "echo_native", "echo_aio"
    ]
    transport: Transport | None = None
    flags: tuple[str, ...] = ()
    planted_us: float = 0.0

    def __str__(self) -> str:
        """Return the name in tables and messages."""
        return (
            " ".join((self.kind.replace("_", " "), self.transport or "", *self.flags))
            .replace("  ", " ")
            .strip()
        )

    @property
    def speaks_grpc(self) -> bool:
        """Tell whether it answers ModelInfer; mosec answers POST with raw bytes."""
        return self.kind != "bare_mosec"


@dataclass(frozen=True)
class Launch:
    """The command and environment that start a server; it writes its port to a file, or is given one."""

    command: tuple[str, ...]
    environment: dict[str, str]


def launch(contestant: Contestant, network: Network, *, port_file: Path, free_port: int) -> Launch:
    """Return how to start ``contestant`` on ``network``.

    ``free_port`` is for mosec, which cannot choose one itself.

    Raises:
        ContestantMissingError: a package or a transport that it needs is not there.
    """
    # A small network finishes before a second thread wakes up; a large one uses all CPUs.
    threads = str(usable_cpus()) if network.name == "alexnet" else "1"
    if contestant.kind in ("foldserve", "first_come"):
        return Launch(_foldserve(contestant, network, port_file), {})
    if contestant.kind == "bare_mosec":
        port_file.write_text(str(free_port))
        script = str(Path(__file__).with_name("bare_mosec.py"))
        flags = ("--address", "127.0.0.1", "--port", str(free_port), "--log-level", "error")
        environment = {"BARE_MODEL": str(network.model_file.absolute()), "BARE_THREADS": threads}
        return Launch((str(mosec_python()), script, *flags), environment)
    if contestant.kind in ("bare_native", "echo_native"):
        _require_native()
    module = f"benchmarks.serving.{contestant.kind}"
    return Launch((sys.executable, "-m", module, str(network.model_file), str(port_file), threads), {})


def _foldserve(contestant: Contestant, network: Network, port_file: Path) -> tuple[str, ...]:
    program = ["foldserve" if contestant.kind == "foldserve" else "benchmarks.fairness.first_come_server"]
    if contestant.planted_us:
        program = ["benchmarks.regression.slowed_server", str(contestant.planted_us)]
    command = [sys.executable, "-m", *program, "serve", "--repository", str(network.repository)]
    command += ["--device", "cpu", "--port", "0", "--port-file", str(port_file), "--log-level", "error"]
    settings = ServeConfig.model_fields
    if "transport" in settings:
        command += ["--transport", str(contestant.transport)]
    elif contestant.transport != "grpcio":
        raise ContestantMissingError(f"this foldserve has no transport {contestant.transport}")
    if contestant.transport == "native":
        _require_native()
    if "metrics_port" in settings:
        command += ["--metrics-port", "0"]
    return (*command, *contestant.flags)


def _require_native() -> None:
    if importlib.util.find_spec("pygrpc_native") is None:
        raise ContestantMissingError("pygrpc-native is not installed: pip install 'foldserve[native]'")
