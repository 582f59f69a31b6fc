"""deploy/kubernetes/training against Kubeflow's own models and Kubernetes' schemas; no cluster has run it."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from foldserve.cli import parse
from foldserve.training.config import TrainConfig
from tests.deploy.manifests import KUBERNETES, Manifest, load
from tests.support.foreign_clients import CLIENTS, SOURCE, report_of, require_installed

if TYPE_CHECKING:
    from pathlib import Path

TRAINING = KUBERNETES / "training"
PYTHON = SOURCE / ".venv-interop" / "bin" / "python"


def pod_of(job: Manifest) -> Any:
    """The patch of the pods, through four templates."""
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


def claims() -> list[Manifest]:
    return list(yaml.safe_load_all((TRAINING / "claims.yaml").read_text()))


def read_by_kubeflow(sent: list[Manifest], folder: Path) -> list[Manifest]:
    require_installed([PYTHON], "Kubeflow's models")
    (folder / "sent.json").write_text(json.dumps(sent))
    left: list[Manifest] = report_of(PYTHON, CLIENTS / "trainjob_script.py", folder / "sent.json")
    return left


@pytest.mark.interop
def test_kubeflow_s_models_keep_every_key(tmp_path: Path) -> None:
    job = load(TRAINING / "trainjob.yaml")
    assert read_by_kubeflow([job], tmp_path) == [job]


@pytest.mark.interop
def test_a_key_that_kubeflow_does_not_know_is_missed(tmp_path: Path) -> None:
    """The check itself, near the top and deep inside."""
    job = load(TRAINING / "trainjob.yaml")
    sent = copy.deepcopy(job)
    sent["spec"]["trainer"]["nodes"] = 2
    pod_of(sent)["containers"][0]["securityContext"]["readOnlyRoot"] = True
    assert read_by_kubeflow([sent], tmp_path) == [job]


def test_the_pod_is_what_kubernetes_takes_and_restricted() -> None:
    """The parts of a pod that the patch sets, completed to one."""
    patch = pod_of(load(TRAINING / "trainjob.yaml"))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": copy.deepcopy(patch)}
    (container,) = pod["spec"]["containers"]
    container["image"] = "x"
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    assert patch["securityContext"]["runAsNonRoot"]
    assert patch["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_claims_are_what_kubernetes_takes_and_all_that_the_job_asks_for() -> None:
    for claim in claims():
        kubernetes_validate.validate(claim, kubernetes_validate.latest_version(), strict=True)
    volumes = pod_of(load(TRAINING / "trainjob.yaml"))["volumes"]
    asked = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "emptyDir" not in volume]
    assert sorted(asked) == sorted(claim["metadata"]["name"] for claim in claims())


def test_the_command_is_the_trainer_s_and_writes_only_to_mounts() -> None:
    job = load(TRAINING / "trainjob.yaml")
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["torchrun"]
    module, name, *words = trainer["args"]
    assert (module, name) == ("-m", "foldserve")
    config = parse(words, {})
    assert isinstance(config, TrainConfig)
    mounts = [mount["mountPath"] for mount in pod_of(job)["containers"][0]["volumeMounts"]]
    homes = [variable["value"] for variable in trainer["env"]]
    for path in (str(config.run_dir), str(config.data_dir), *homes):
        assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts), path
