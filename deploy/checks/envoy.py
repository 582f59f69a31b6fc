"""Runs Envoy with deploy/envoy/envoy.yaml as a process of this machine, and reads its counters."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme
import yaml

from deploy.checks.errors import CheckError
from foldserve.demo.children import ending_with_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"
# Of the cluster `servers`: what Envoy did about broken servers.
COUNTERS = (
    "upstream_rq_retry",
    "upstream_rq_retry_success",
    "upstream_rq_retry_overflow",
    "upstream_rq_retry_limit_exceeded",
    "outlier_detection.ejections_enforced_total",
    "health_check.failure",
    "upstream_cx_connect_fail",
    "http2.keepalive_timeout",
)
_HOSTS = Path("/etc/hosts")
_WAIT_S = 60.0


def find_envoy() -> Path:
    """Return the program.

    Raises:
        CheckError: there is none.
    """
    places = [ROOT / folder / "bin" / "envoy" for folder in (".venv-envoy", ".venv-interop")]
    found = [Path(path) for path in (shutil.which("envoy"), *places) if path and Path(path).exists()]
    if not found:
        raise CheckError("needs envoy on the path or in .venv-envoy, where `make check-network` puts it")
    return found[0]


class Envoy:
    """Envoy that listens on 127.0.0.1:8443 with a certificate of its own, in front of ``addresses``.

    Attributes:
        certificate: PEM of the authority that callers trust.

    Args:
        folder: an existing one, for the certificate, the configuration and the log.
        addresses: the servers, each on port 8001.
        change: what to change in the configuration first; nothing by default.
    """

    def __init__(
        self, folder: Path, addresses: Sequence[str], change: Callable[[Any], None] | None = None
    ) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
        self.certificate = authority.cert_pem.bytes()
        self._addresses = addresses
        self._log = folder / "envoy.log"
        self._config = folder / "envoy.yaml"
        content = yaml.safe_load(CONFIG.read_text().replace("/certs/", f"{folder}/"))
        if change is not None:
            change(content)
        self._config.write_text(yaml.safe_dump(content))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it for the block, in which the name `server` resolves to all servers, for all programs.

        Only for a process that has its mounts for itself.
        """
        hosts = self._config.with_name("hosts")
        lines = [f"{address} server\n" for address in self._addresses]
        hosts.write_text("".join(["127.0.0.1 localhost\n", *lines]))
        subprocess.run(["mount", "--bind", hosts, _HOSTS], check=True)
        command = [find_envoy(), "--config-path", self._config, "--concurrency", "1", "--log-level", "error"]
        try:
            with self._log.open("wb") as log:
                process = subprocess.Popen(ending_with_us(command), stdout=log, stderr=log)
            try:
                yield
            finally:
                process.terminate()
                process.wait()
        finally:
            subprocess.run(["umount", _HOSTS], check=True)

    def wait_until_whole(self, limit_s: float = _WAIT_S) -> None:
        """Wait until it finds all servers healthy.

        Raises:
            CheckError: it does not within ``limit_s``.
        """
        until_s = time.monotonic() + limit_s
        while count_healthy(self._admin("clusters")) != len(self._addresses):
            if time.monotonic() > until_s:
                said = self._log.read_text(errors="replace").strip().splitlines()
                raise CheckError(
                    f"Envoy did not find {len(self._addresses)} healthy servers within {limit_s:.0f} s"
                    f"{': ' + said[-1] if said else ''}"
                )
            time.sleep(0.2)

    def counters(self) -> dict[str, int]:
        """Return Envoy's counters that tell what it did."""
        return read_counters(self._admin("stats?filter=cluster.servers"))

    def _admin(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:9901/{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:  # not started yet
            return ""


def count_healthy(clusters: str) -> int:
    """Return how many servers of the cluster are healthy, in the text of Envoy's /clusters."""
    return clusters.count("health_flags::healthy")


def read_counters(stats: str) -> dict[str, int]:
    """Return `COUNTERS` from the text of Envoy's /stats; those that it does not have yet are 0."""
    lines = [line.partition(": ") for line in stats.splitlines()]
    found = {name.removeprefix("cluster.servers."): value for name, _, value in lines}
    return {name: int(found.get(name, "0")) for name in COUNTERS}
