"""A real server, started with the arguments of the manifests, asked what the cluster's probes will ask.

The container is imitated: an unknown user id without capabilities, and a file system that cannot be written
but for one folder. What an engine would add (an image, a runtime, cgroups) is not.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.serving.client.sync_client import Client
from tests.deploy.manifests import DEPLOY, KUBERNETES, container_of, load, probes_of
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

BASE = KUBERNETES / "base" / "deployment.yaml"
GPU = KUBERNETES / "overlays" / "gpu" / "deployment.yaml"
RUNTIME = DEPLOY / "kserve" / "serving-runtime.yaml"
USER_ID = 12345  # nobody's on this machine
READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,ro,bind / &&
exec setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all --bounding-set=-all "$@"
"""


def flags_of(manifest: Path, **instead: str) -> list[str]:
    """The container's arguments, less those that say where; ``instead`` of KServe's placeholders."""
    _, *flags = container_of(load(manifest))["args"]
    where = ("--repository=", "--host=", "--device=")
    kept = [flag for flag in flags if not flag.startswith(where)]
    for name, text in instead.items():
        kept = [flag.replace("{{." + name + "}}", text) for flag in kept]
    return kept


def status_of(server: ServerProcess, service: str) -> str:
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


@pytest.fixture
def container(tmp_path: Path) -> tuple[str, ...]:
    """What stands before a command that is to run as in a container that may write to ``tmp_path`` only."""
    writable = tmp_path / "writable"
    writable.mkdir()
    unshare = ("unshare", "--user", f"--map-user={USER_ID}", "--mount", "--keep-caps")
    prefix = (*unshare, "sh", "-c", READ_ONLY, str(writable), "env", "HOME=/")
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} on the path")
    probe = f"id -u; grep CapEff /proc/self/status; touch {tmp_path}/outside || touch {writable}/inside"
    done = subprocess.run([*prefix, "sh", "-c", probe], capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("needs user namespaces, which this machine forbids")
    assert done.stdout.split() == [str(USER_ID), "CapEff:", "0" * 16], done.stderr
    assert not (tmp_path / "outside").exists()
    assert (writable / "inside").exists()
    return prefix


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_any_user_on_a_read_only_root_serves(
    tmp_path: Path, container: tuple[str, ...], transport: str
) -> None:
    network = TinyNetwork()
    network.publish(tmp_path / "models" / "tiny")
    flags = [flag for flag in flags_of(BASE) if transport == "grpcio" or "connection-age" not in flag]
    with ServerProcess(
        tmp_path / "models",
        tmp_path / "writable" / "server",
        *flags,
        *("--transport", transport),
        prefix=container,
    ) as server:
        images = network.random_images(3)
        with Client(server.address) as client:
            logits = client.infer("tiny", images)["logits"]
        assert np.abs(logits - network.logits(images)).max() < 1e-5
        assert probes_of(container_of(load(BASE))).keys() == {
            "startupProbe",
            "livenessProbe",
            "readinessProbe",
        }
        for service in probes_of(container_of(load(BASE))).values():
            assert status_of(server, service) == "SERVING"


def test_a_server_without_models_is_live_and_not_ready(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with ServerProcess(tmp_path / "models", tmp_path / "server", *flags_of(BASE)) as server:
        probes = probes_of(container_of(load(BASE)))
        assert status_of(server, probes["startupProbe"]) == "SERVING"
        assert status_of(server, probes["livenessProbe"]) == "SERVING"
        assert status_of(server, probes["readinessProbe"]) == "NOT_SERVING"


def test_kserve_s_arguments_serve_a_version_laid_flat(tmp_path: Path) -> None:
    network = TinyNetwork()
    version = network.publish(tmp_path / "models" / "tiny")
    shutil.copytree(version, tmp_path / "mnt" / "models")
    with ServerProcess(
        tmp_path / "mnt" / "models", tmp_path / "server", *flags_of(RUNTIME, Name="lenet")
    ) as server:
        images = network.random_images(3)
        with Client(server.address) as client:
            logits = client.infer("lenet", images)["logits"]
            (entry,) = client.index()
        assert np.abs(logits - network.logits(images)).max() < 1e-5
        assert (entry.name, entry.version, entry.state) == ("lenet", "1", "READY")
        for service in probes_of(container_of(load(RUNTIME))).values():
            assert status_of(server, service) == "SERVING"
