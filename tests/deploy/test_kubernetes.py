"""deploy/kubernetes against Kubernetes' own schemas, and against what the server really does."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest

from tests.deploy.manifests import (
    KUBERNETES,
    OVERLAYS,
    Manifest,
    container_of,
    load,
    patches_of,
    render,
    settings_of,
)
from tests.support.artifacts import TinyNetwork
from tests.support.scrape import get
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

BASE = KUBERNETES / "base"
# The oldest in which all of it is stable (the budget's unhealthyPodEvictionPolicy came last), and the newest.
VERSIONS = ("1.31", kubernetes_validate.latest_version())


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    return render(request.param)


def test_kustomizations_name_files_that_there_are_and_patches_apply_to_something() -> None:
    """Without kubectl, too; the base leaves no file out."""
    resources = load(BASE / "kustomization.yaml")["resources"]
    assert sorted([*resources, "kustomization.yaml"]) == sorted(path.name for path in BASE.iterdir())
    named = [
        (found["kind"], found["metadata"]["name"]) for found in (load(BASE / name) for name in resources)
    ]
    for overlay in OVERLAYS:
        kustomization = KUBERNETES / "overlays" / overlay / "kustomization.yaml"
        assert load(kustomization)["resources"] == ["../../base"]
        for patch in patches_of(kustomization):
            assert (patch["kind"], patch["name"]) in named
        (image,) = load(kustomization)["images"]
        assert image["name"] == container_of(load(BASE / "deployment.yaml"))["image"]


@pytest.mark.parametrize("version", VERSIONS)
def test_all_objects_are_what_kubernetes_takes(rendered: dict[str, Manifest], version: str) -> None:
    for manifest in rendered.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_a_key_that_they_do_not_know() -> None:
    """The check itself: strict, also deep inside."""
    wrong = copy.deepcopy(load(BASE / "deployment.yaml"))
    container_of(wrong)["livenessProbe"]["grpc"]["sevice"] = ""
    with pytest.raises(kubernetes_validate.ValidationError, match="sevice"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_selectors_find_the_pods_and_callers_are_not_the_servers(rendered: dict[str, Manifest]) -> None:
    deployment = rendered["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    policy = rendered["NetworkPolicy"]["spec"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
        rendered["Service"]["spec"]["selector"],
        rendered["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels
    (callers,) = policy["ingress"][0]["from"]
    assert callers == {"podSelector": {"matchLabels": {"foldserve-client": "true"}}}
    target = rendered["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "they are the autoscaler's"


def test_ports_names_and_times_are_the_server_s(rendered: dict[str, Manifest]) -> None:
    pod = rendered["Deployment"]["spec"]["template"]
    container = container_of(rendered["Deployment"])
    config = settings_of(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": config.port, "metrics": config.metrics_port}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(config.metrics_port)
    service = rendered["Service"]["spec"]
    assert service["clusterIP"] == "None", "headless, in words"
    assert {port["targetPort"] for port in service["ports"]} == ports.keys()
    rules = [rule["ports"] for rule in rendered["NetworkPolicy"]["spec"]["ingress"]]
    assert [port["port"] for (port,) in rules] == ["grpc", "metrics"]
    leaving_s = config.drain_delay_s + config.grace_period_s
    assert pod["spec"]["terminationGracePeriodSeconds"] > leaving_s
    probe = container["readinessProbe"]
    assert config.drain_delay_s > probe["periodSeconds"] * probe.get("failureThreshold", 3)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    claim = volumes[mounts[str(config.repository)]]["persistentVolumeClaim"]["claimName"]
    assert claim == rendered["PersistentVolumeClaim"]["metadata"]["name"]


def test_pods_are_restricted(rendered: dict[str, Manifest]) -> None:
    """By the Pod Security Standard of that name, and more: a read-only root, and no user of our choice."""
    pod = rendered["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container_of(rendered["Deployment"])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(volume.keys() == {"name", "persistentVolumeClaim"} for volume in pod["volumes"])


def test_the_image_leaves_the_user_open() -> None:
    """The kubelet cannot tell that a name is not root, and another user cannot enter somebody's home."""
    lines = (KUBERNETES.parents[1] / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert len(users) == sum(line.startswith("ENTRYPOINT ") for line in lines)
    assert all(user.isdigit() and user != "0" for user in users)
    assert [line for line in lines if line.startswith("WORKDIR ")][-1] == "WORKDIR /"


def test_the_gpu_overlay_asks_for_one_and_takes_nothing_else() -> None:
    container = container_of(render("gpu")["Deployment"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert settings_of(container["args"]).device == "cuda"
    assert settings_of(container_of(render("cpu")["Deployment"])["args"]).device == "cpu"


def test_the_autoscaler_s_metric_is_one_that_the_server_has(tmp_path: Path) -> None:
    (metric,) = load(BASE / "autoscaler.yaml")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    (rule,) = load(KUBERNETES / "prometheus-adapter-values.yaml")["rules"]["custom"]
    assert rule["name"]["as"] == name
    series = rule["seriesQuery"].partition("{")[0]
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    with ServerProcess(tmp_path / "models", tmp_path / "server") as server:
        _, text = get(server, "/metrics")
    assert f'\n{series}{{model="tiny",version="1"}} 0' in text
