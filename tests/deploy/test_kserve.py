"""deploy/kserve against the KServe SDK's own models."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.manifests import DEPLOY, KUBERNETES, Manifest, container_of, load, settings_of
from tests.support.foreign_clients import CLIENTS, SOURCE, report_of, require_installed

if TYPE_CHECKING:
    from pathlib import Path

KSERVE = DEPLOY / "kserve"
PYTHON = SOURCE / ".venv-interop" / "bin" / "python"
FILES = sorted(KSERVE.iterdir())


def read_by_kserve(manifests: list[Manifest], folder: Path) -> list[Manifest]:
    require_installed([PYTHON], "the KServe SDK")
    (folder / "sent.json").write_text(json.dumps(manifests))
    left: list[Manifest] = report_of(PYTHON, CLIENTS / "kserve_models_script.py", folder / "sent.json")
    return left


def without_defaults(left: Any, sent: Any) -> Any:
    """What is left of ``sent``, less the empty texts that the models add to it."""
    if isinstance(left, dict):
        return {
            key: without_defaults(value, sent.get(key, {}))
            for key, value in left.items()
            if value != "" or key in sent
        }
    if isinstance(left, list):
        return [without_defaults(*pair) for pair in zip(left, sent, strict=True)]
    return left


@pytest.mark.interop
def test_kserve_s_models_keep_every_key(tmp_path: Path) -> None:
    sent = [load(path) for path in FILES]
    assert without_defaults(read_by_kserve(sent, tmp_path), sent) == sent


@pytest.mark.interop
def test_a_key_that_kserve_does_not_know_is_missed(tmp_path: Path) -> None:
    """The check itself, in KServe's part of an object and in Kubernetes'."""
    runtime, service = load(KSERVE / "serving-runtime.yaml"), load(KSERVE / "inference-service.yaml")
    sent = [copy.deepcopy(runtime), copy.deepcopy(service)]
    container_of(sent[0])["readinessProbe"]["grpc"]["sevice"] = "x"
    sent[1]["spec"]["predictor"]["canaryTraffic"] = 10
    assert without_defaults(read_by_kserve(sent, tmp_path), sent) == [runtime, service]


def test_the_service_asks_for_what_the_runtime_offers() -> None:
    runtime = load(KSERVE / "serving-runtime.yaml")
    for path in KSERVE.glob("inference-service*.yaml"):
        model = load(path)["spec"]["predictor"]["model"]
        assert model["runtime"] == runtime["metadata"]["name"]
        assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
        formats = [offered["name"] for offered in runtime["spec"]["supportedModelFormats"]]
        assert model["modelFormat"]["name"] in formats


def test_the_canary_is_the_same_service_with_another_version() -> None:
    stable, canary = (load(KSERVE / f"inference-service{end}.yaml") for end in ("", "-canary"))
    assert canary["spec"]["predictor"].pop("canaryTrafficPercent") == 10
    uris = [manifest["spec"]["predictor"]["model"].pop("storageUri") for manifest in (stable, canary)]
    claim = load(KUBERNETES / "base" / "models-claim.yaml")["metadata"]["name"]
    assert uris == [f"pvc://{claim}/lenet/{version}" for version in (1, 2)]
    assert canary == stable


def test_ports_and_mounts_are_the_server_s() -> None:
    runtime = load(KSERVE / "serving-runtime.yaml")
    container = container_of(runtime)
    config = settings_of([arg.replace("{{.Name}}", "lenet") for arg in container["args"]])
    assert config.model_name == "lenet"
    assert str(config.repository) == "/mnt/models", "where KServe lays the version"
    assert container["ports"] == [{"name": "h2c", "containerPort": config.port, "protocol": "TCP"}]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(config.metrics_port)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["runAsNonRoot"]
