"""The files under deploy/, read and rendered."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import yaml

from foldserve import cli
from foldserve.serving.config import ServeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

Manifest: TypeAlias = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cpu", "gpu")


def load(path: Path) -> Manifest:
    """The only object in a file; unknown tags and a second object are errors."""
    manifest: Manifest = yaml.safe_load(path.read_text())
    return manifest


def render(overlay: str) -> dict[str, Manifest]:
    """What kustomize, which kubectl brings along, makes of an overlay: its objects by kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl on the path, to render the overlays (no cluster)")
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "nothing deprecated"
    objects = list(yaml.safe_load_all(done.stdout))
    by_kind = {manifest["kind"]: manifest for manifest in objects}
    assert len(by_kind) == len(objects), "one object of a kind"
    return by_kind


def container_of(manifest: Manifest) -> Manifest:
    """The only container of a Deployment or a ServingRuntime."""
    spec = manifest["spec"]
    (container,) = (spec["template"]["spec"] if "template" in spec else spec)["containers"]
    found: Manifest = container
    return found


def settings_of(args: list[str]) -> ServeConfig:
    """What the command line makes of a container's arguments."""
    config = cli.parse(args, {})
    assert isinstance(config, ServeConfig)
    return config


def probes_of(container: Manifest) -> dict[str, str]:
    """The services that a container's probes ask the health of, by probe; all are gRPC's, on its port."""
    probes = {name: probe for name, probe in container.items() if name.endswith("Probe")}
    ports = {probe["grpc"]["port"] for probe in probes.values()}
    assert ports == {settings_of(container["args"]).port}
    return {name: probe["grpc"].get("service", "") for name, probe in probes.items()}


def patches_of(kustomization: Path) -> Iterator[Manifest]:
    """What each patch of an overlay names: kind and name."""
    for patch in load(kustomization)["patches"]:
        if "path" in patch:
            found = load(kustomization.parent / patch["path"])
            yield {"kind": found["kind"], "name": found["metadata"]["name"]}
        else:
            yield patch["target"]
