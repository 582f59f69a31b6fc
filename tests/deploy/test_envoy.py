"""deploy/envoy and the compose profile `scale`; `make check-compose` brings them up for real."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from foldserve.serving.pb import classifier_pb2, open_inference_pb2
from tests.deploy.manifests import DEPLOY
from tests.support.foreign_clients import SOURCE, require_installed
from tests.support.sources import ROOT

CONFIG = DEPLOY / "envoy" / "envoy.yaml"
ENVOY = Path(shutil.which("envoy") or SOURCE / ".venv-interop" / "bin" / "envoy")


@pytest.fixture
def cluster() -> Any:
    (found,) = yaml.safe_load(CONFIG.read_text())["static_resources"]["clusters"]
    return found


@pytest.fixture
def services() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_envoy_finds_the_servers_of_the_compose_file(cluster: Any, services: Any) -> None:
    (group,) = cluster["load_assignment"]["endpoints"]
    (endpoint,) = group["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address["address"] in services
    ports = services[address["address"]]["ports"]
    assert f"127.0.0.1:${{FOLDSERVE_ANY_PORT-8001}}:{address['port_value']}" in ports
    assert services["envoy"]["profiles"] == ["scale"]
    assert services["envoy"]["depends_on"] == {"server": {"condition": "service_healthy"}}


def test_a_port_of_the_host_is_envoy_s_listener(services: Any) -> None:
    (listener,) = yaml.safe_load(CONFIG.read_text())["static_resources"]["listeners"]
    port = listener["address"]["socket_address"]["port_value"]
    assert services["envoy"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_broken_servers_are_noticed_in_three_ways_and_called_only_if_no_other_is_left(cluster: Any) -> None:
    (check,) = cluster["health_checks"]
    assert check["grpc_health_check"] == {"service_name": ""}
    assert cluster["outlier_detection"]["max_ejection_percent"] < 100
    # Per cent: with fewer than a hundred servers, none is healthy. At 0 all calls would then be refused.
    assert cluster["common_lb_config"]["healthy_panic_threshold"] == {"value": 1}
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert "connection_keepalive" in options["explicit_http_config"]["http2_protocol_options"]


def test_all_calls_of_a_lost_server_may_be_tried_again_at_once(cluster: Any) -> None:
    (limits,) = cluster["circuit_breakers"]["thresholds"]
    assert limits["max_retries"] == limits["max_requests"]


def test_no_stream_is_sent_again() -> None:
    """A stream that was sent again would be answered twice, from its start; a Watch has no end."""
    (listener,) = yaml.safe_load(CONFIG.read_text())["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    (manager,) = chain["filters"]
    (host,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    *own, general = host["routes"]
    assert general["match"]["prefix"] == "/"
    assert "retry_policy" in general["route"]
    assert all(route["route"] == {"cluster": "servers", "timeout": "0s"} for route in own)
    streams = {
        f"/{service.full_name}/{method.name}"
        for file in (open_inference_pb2, classifier_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.client_streaming or method.server_streaming
    }
    assert len(streams) >= 2
    assert {route["match"]["path"] for route in own} == {*streams, "/grpc.health.v1.Health/Watch"}


def test_images_are_built_from_what_they_copy() -> None:
    lines = (DEPLOY / "envoy" / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY "):
            assert (DEPLOY / "envoy" / line.split()[1]).exists()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]


def validated(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Envoy's own opinion of a configuration, with certificates that there are."""
    require_installed([ENVOY], "envoy")
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    issued.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "envoy.yaml").write_text(text.replace("/certs/", f"{folder}/"))
    command = [ENVOY, "--mode", "validate", "--config-path", str(folder / "envoy.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.interop
def test_envoy_takes_the_configuration_without_a_warning(tmp_path: Path) -> None:
    done = validated(CONFIG.read_text(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Deprecated" not in done.stderr


@pytest.mark.interop
def test_envoy_refuses_a_key_that_it_does_not_know(tmp_path: Path) -> None:
    """The check itself."""
    wrong = CONFIG.read_text().replace("consecutive_5xx", "consecutive_5x")
    done = validated(wrong, tmp_path)
    assert done.returncode != 0
    assert "consecutive_5x" in done.stderr
