"""Kills one of three servers behind Envoy and pauses another, under load, 50 times: `make check-compose`.

Brings up docker-compose.yml's profile `scale` for real, with a LeNet of its own. The callers never try again,
so each call that a broken server loses is seen unless Envoy saves it. Callers that are connected to a killed
server directly show that calls are lost otherwise. Needs Docker and Compose v2.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trustme

from deploy.checks.envoy import count_healthy, read_counters
from deploy.checks.errors import CheckError
from deploy.checks.replica_load import Callers, Questions

ROOT = Path(__file__).parents[2]
REPLICAS = 3
CALLERS = 8
HELD_S = 4.0
WAIT_S = 240.0


class Project:
    """A compose project of this trial's own."""

    def __init__(self, folder: Path, models: Path) -> None:
        certificates = folder / "certificates"
        certificates.mkdir()
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        (certificates / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        (certificates / "tls.key").write_bytes(issued.private_key_pem.bytes())
        self.certificate = authority.cert_pem.bytes()
        for path in (folder, certificates, models):  # the containers' user is another
            path.chmod(0o755)
        name = f"check-compose-{os.getpid()}"
        self._compose = [*_compose_command(), "--project-name", name, "--profile", "scale"]
        self._environment = dict(os.environ, FOLDSERVE_ANY_PORT="", FOLDSERVE_MODELS=str(models))
        self._environment["FOLDSERVE_CERTS"] = str(certificates)

    def up(self) -> None:
        """Build the images that are not there, and start three servers and Envoy."""
        for image, words in (
            ("foldserve-server", ["--target", "server", "."]),
            ("foldserve-envoy", ["deploy/envoy"]),
        ):
            if made := docker("images", "--format", "{{.CreatedSince}}", image):
                print(f"using {image}, made {made}; `docker image rm {image}` has it made of these sources")
            else:
                print(f"building {image} ...", flush=True)
                docker("build", "--network", "host", "--tag", image, *words)
        # Without the jobs: the models are there.
        flags = ["--detach", "--no-deps", "--no-build", "--wait", "--wait-timeout", str(int(WAIT_S))]
        self._run("up", *flags, "--scale", f"server={REPLICAS}", "server", "envoy")
        self.wait_until_whole()

    def down(self) -> None:
        """Remove all of it."""
        for container in self._ids("server", "--status", "paused"):
            docker("unpause", container)
        self._run("down", "--volumes", "--timeout", "10")

    def servers(self) -> list[str]:
        """Return the ids of the servers' containers."""
        return self._ids("server")

    def wait_until_whole(self) -> None:
        """Wait until Envoy finds all servers healthy."""
        until_s = time.monotonic() + WAIT_S
        while count_healthy(self._admin("clusters")) != REPLICAS:
            if time.monotonic() > until_s:
                raise CheckError(f"Envoy did not find {REPLICAS} healthy servers within {WAIT_S:.0f} s")
            time.sleep(0.2)

    def counters(self) -> dict[str, int]:
        """Return Envoy's counters that tell what it did."""
        return read_counters(self._admin("stats?filter=cluster.servers"))

    def _admin(self, path: str) -> str:
        (envoy,) = self._ids("envoy")
        url = f"http://127.0.0.1:9901/{path}"
        code = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
        return docker("exec", envoy, "python", "-c", code)

    def _ids(self, service: str, *flags: str) -> list[str]:
        return self._run("ps", "--all", "--quiet", *flags, service).split()

    def _run(self, *words: str) -> str:
        return _run([*self._compose, *words], self._environment)


def docker(*words: str) -> str:
    """Run a docker command and return what it prints."""
    return _run(["docker", *words], dict(os.environ))


def _run(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise CheckError(f"{' '.join(words)} failed: {' / '.join(last)}")
    return done.stdout.strip()


def _compose_command() -> list[str]:
    if shutil.which("docker") is None:
        raise CheckError("needs docker on the path, with a daemon")
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise CheckError("needs Docker Compose v2: the plugin `docker compose`, or docker-compose on the path")


def break_and_mend(project: Project, generator: random.Random) -> None:
    """Kill one server and pause another for a while; return once all three serve again."""
    killed, paused, _ = generator.sample(project.servers(), REPLICAS)
    docker("kill", killed)
    docker("pause", paused)
    time.sleep(HELD_S)
    docker("start", killed)
    docker("unpause", paused)
    project.wait_until_whole()


def lost_without_envoy(project: Project, questions: Questions) -> int:
    """Return how many calls are lost if a server that callers are connected to is killed."""
    server = project.servers()[0]
    (port,) = {line.rpartition(":")[2] for line in docker("port", server, "8001").splitlines()}
    with Callers(f"127.0.0.1:{port}", None, questions, 2) as callers:
        time.sleep(1)
        docker("kill", server)
        time.sleep(1)
    docker("start", server)
    project.wait_until_whole()
    return len(callers.tally.lost)


def main() -> int:
    """Run the trial; return 0 if no call was lost and none answered wrongly."""
    parser = argparse.ArgumentParser(prog="python -m deploy.checks.compose", description=__doc__)
    parser.add_argument("--trials", type=int, default=50, help="how often servers are broken (default: 50)")
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory(prefix="check-compose-") as name:
        questions = Questions(Path(name) / "models")
        project = Project(Path(name), questions.repository)
        try:
            return _trial(project, questions, trials)
        finally:
            project.down()


def _trial(project: Project, questions: Questions, trials: int) -> int:
    project.up()
    print(f"{REPLICAS} servers behind Envoy are healthy", flush=True)
    lost = lost_without_envoy(project, questions)
    print(f"without Envoy, a killed server lost {lost} calls", flush=True)
    if not lost:
        raise CheckError("the load would not notice a lost call")
    generator = random.Random(0)
    before = project.counters()
    with Callers("127.0.0.1:8443", project.certificate, questions, CALLERS) as callers:
        for number in range(1, trials + 1):
            answered = callers.tally.right
            break_and_mend(project, generator)
            tally = callers.tally
            if tally.right == answered:
                raise CheckError("nothing was answered while one server was left")
            print(
                f"trial {number}: {tally.right} right, {tally.wrong} wrong, {len(tally.lost)} lost, "
                f"slowest {tally.slowest_s:.1f} s",
                flush=True,
            )
    after = project.counters()
    print("Envoy:", json.dumps({name: after[name] - before[name] for name in after}))
    for text in sorted(set(callers.tally.lost)):
        print(f"lost {callers.tally.lost.count(text)} times: {text}")
    return 1 if callers.tally.wrong or callers.tally.lost else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as error:
        print(f"check-compose: {error}", file=sys.stderr)
        sys.exit(1)
