"""Cuts the link of one of three servers behind Envoy and pauses another, under load: `make check-network`.

Each server runs in a network namespace of its own, Envoy and the callers in another; the links are cut in
three ways in turn (`deploy.checks.namespaces`), for one to eight seconds, while another server is stopped by
SIGSTOP: 50 times. The callers never try again. First they call through an Envoy whose retries are taken away,
which has to lose calls, or the load would not notice a lost one. Last, a link is cut while 4,000 calls are
under way. Needs Linux, iproute2 and root, or user namespaces; the machine's own network is left alone.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.checks.envoy import ROOT, Envoy, find_envoy
from deploy.checks.errors import CheckError
from deploy.checks.namespaces import CUTS, Cut, Replicas, isolated
from deploy.checks.replica_load import Callers, Crowd, Questions
from foldserve.demo.children import environment_without_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_ADDRESS = "127.0.0.1:8443"
REPLICAS = 3
CALLERS = 8
# Between two calls of a caller: moderate load, so that what is measured is not the machine's speed.
PAUSE_S = 0.01
# Calls at once, after the trials; Envoy takes a thousand per connection.
CROWD, CROWD_CONNECTIONS = 4000, 4
LEAST_CUT_S, MOST_CUT_S = 1.0, 8.0
# By then no call still waits for a broken server: Envoy's pings have found it after four seconds.
_NOTICED_S = 6.0
_START_S = 240.0


@dataclass(frozen=True)
class Break:
    """What happens to one or two of the servers, and for how long."""

    cut: int
    way: Cut
    paused: int | None
    seconds: float

    def __str__(self) -> str:
        """Return it in words."""
        paused = "" if self.paused is None else f", {self.paused} paused"
        return f"{self.way} at {self.cut}{paused}, for {self.seconds:.1f} s"


def draw(generator: random.Random, number: int) -> Break:
    """Return the break of trial ``number``, from 0 on: the ways to cut take turns, the rest is drawn."""
    cut, paused = generator.sample(range(REPLICAS), 2)
    return Break(cut, CUTS[number % len(CUTS)], paused, generator.uniform(LEAST_CUT_S, MOST_CUT_S))


class Servers:
    """A server on each replica, of the models in ``repository``."""

    def __init__(self, replicas: Replicas, repository: Path, folder: Path) -> None:
        self._replicas, self._repository, self._folder = replicas, repository, folder
        self._processes: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run them for the block."""
        # As in deploy's containers.
        flags = ["serve", "--repository", str(self._repository), "--host", "0.0.0.0", "--device", "cpu"]
        environment = environment_without_settings() | {"PYTHONPATH": str(ROOT)}
        try:
            for number in range(REPLICAS):
                command = self._replicas.command(number, [sys.executable, "-m", "foldserve", *flags])
                with (self._folder / f"server-{number}.log").open("wb") as log:
                    self._processes.append(
                        subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._folder)
                    )
            yield
        finally:
            for process in self._processes:
                process.kill()
                process.wait()

    def break_for_a_while(self, broken: Break) -> None:
        """Do what ``broken`` says, and undo it.

        Raises:
            CheckError: a server has ended.
        """
        paused = None if broken.paused is None else self._processes[broken.paused]
        self._replicas.cut(broken.cut, broken.way)
        if paused is not None:
            paused.send_signal(signal.SIGSTOP)
        time.sleep(broken.seconds)
        if paused is not None:
            paused.send_signal(signal.SIGCONT)
        self._replicas.mend(broken.cut, broken.way)
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                said = (self._folder / f"server-{number}.log").read_text(errors="replace").splitlines()
                raise CheckError(f"server {number} ended: {said[-1] if said else process.returncode}")


def without_retries(config: Any) -> None:
    """Take the retries out of Envoy's configuration."""
    (listener,) = config["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    (manager,) = chain["filters"]
    (host,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    del host["routes"][-1]["route"]["retry_policy"]


def run_trials(folder: Path, trials: int) -> int:
    """Run them in this process's own network; return 0 if no call was lost and none answered wrongly.

    Raises:
        CheckError: the trial failed in another way.
    """
    questions = Questions(folder / "models")
    replicas = Replicas(REPLICAS)
    servers = Servers(replicas, questions.repository, folder)
    generator = random.Random(0)
    with servers.running():
        weakened = Envoy(folder, replicas.addresses, without_retries)
        with weakened.running():
            weakened.wait_until_whole(_START_S)
            print(f"{REPLICAS} servers behind Envoy are healthy", flush=True)
            with _calling(weakened, questions) as callers:
                time.sleep(1)
                servers.break_for_a_while(replace(draw(generator, 1), seconds=MOST_CUT_S))
        print(f"without retries, Envoy lost {len(callers.tally.lost)} calls", flush=True)
        if not callers.tally.lost:
            raise CheckError("the load would not notice a lost call")
        envoy = Envoy(folder, replicas.addresses)
        with envoy.running():
            envoy.wait_until_whole(_START_S)
            breaks = [draw(generator, number) for number in range(trials)]
            status = _try_all(envoy, servers, questions, breaks)
            return _try_crowd(envoy, servers, questions) or status


def _calling(envoy: Envoy, questions: Questions) -> Callers:
    return Callers(_ADDRESS, envoy.certificate, questions, CALLERS, PAUSE_S)


def _try_all(envoy: Envoy, servers: Servers, questions: Questions, breaks: list[Break]) -> int:
    before = envoy.counters()
    with _calling(envoy, questions) as callers:
        tally = callers.tally
        for number, broken in enumerate(breaks, start=1):
            answered = tally.right
            servers.break_for_a_while(broken)
            if broken.seconds > _NOTICED_S and tally.right == answered:
                raise CheckError(f"nothing was answered while one server was left: {broken}")
            envoy.wait_until_whole()
            if tally.right == answered:
                raise CheckError(f"nothing was answered although all servers are back: {broken}")
            print(
                f"trial {number} ({broken}): {tally.right} right, {tally.wrong} wrong, "
                f"{len(tally.lost)} lost, slowest {tally.slowest_s:.1f} s",
                flush=True,
            )
    counted = {name: count - before[name] for name, count in envoy.counters().items()}
    print("Envoy:", json.dumps(counted))
    for text in sorted(set(tally.lost)):
        print(f"lost {tally.lost.count(text)} times: {text}")
    if breaks and not counted["upstream_rq_retry_success"]:
        raise CheckError("Envoy had nothing to try again: the trials broke nothing")
    return 1 if tally.wrong or tally.lost else 0


def _try_crowd(envoy: Envoy, servers: Servers, questions: Questions) -> int:
    """Cut a link while thousands of calls are under way: those of one server are tried again all at once."""
    before = envoy.counters()
    with Crowd(_ADDRESS, envoy.certificate, questions, CROWD, CROWD_CONNECTIONS) as crowd:
        servers.break_for_a_while(Break(0, "packets lost", None, MOST_CUT_S))
    tally = crowd.tally
    counted = {name: count - before[name] for name, count in envoy.counters().items()}
    print(f"{CROWD} calls at once: {tally.right} right, {tally.wrong} wrong, {len(tally.lost)} lost")
    print("Envoy:", json.dumps(counted))
    for text in sorted(set(tally.lost)):
        print(f"lost {tally.lost.count(text)} times: {text}")
    return 1 if tally.wrong or tally.lost else 0


def main() -> int:
    """Run the trials, in a network of their own."""
    parser = argparse.ArgumentParser(prog="python -m deploy.checks.network", description=__doc__)
    parser.add_argument("--trials", type=int, default=50, help="how often servers are broken (default: 50)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        find_envoy()
        command = isolated([sys.executable, "-m", "deploy.checks.network", *sys.argv[1:], "--inside"])
        return subprocess.run(command, check=False).returncode
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="check-network-") as name:
        return run_trials(Path(name), arguments.trials)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as error:
        print(f"check-network: {error}", file=sys.stderr)
        sys.exit(1)
