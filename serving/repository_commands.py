"""`foldserve models list` and `foldserve models verify`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from serving.channel import connection_options
from serving.client import Client
from serving.config import DEFAULT_SERVER
from serving.errors import ArtifactError, ServingError
from serving.time_limit import TimeLimit, end_process

if TYPE_CHECKING:
    from pathlib import Path

    from serving.config import ListConfig, VerifyConfig

Row: TypeAlias = tuple[str, str, str, str]

_HEADINGS: Row = ("MODEL", "VERSION", "STATE", "DETAILS")


def list_models(config: ListConfig) -> int:
    """Print a line for each version; return 0, or 1 where a server was asked that serves none of them.

    Raises:
        ServingError: the repository cannot be read, or no server answers.
    """
    if config.repository is not None:
        rows = _rows_of_repository(config.repository)
    else:
        rows = _rows_of_server(config.server or DEFAULT_SERVER, config)
    if rows:
        _print_table(rows)
    else:
        print(f"no models in {config.repository or config.server or DEFAULT_SERVER}")
    asked_server = config.repository is None
    return 1 if asked_server and not any(state == "READY" for _, _, state, _ in rows) else 0


def verify_models(config: VerifyConfig) -> int:
    """Check hashes and replay golden pairs of each version; print a line each, return 1 if any fails.

    Raises:
        ServingError: the repository cannot be read, or the device asked for is not there.
    """
    from serving.model import ModelSettings, open_verified  # noqa: PLC0415  # a list from a server needs no ONNX Runtime
    from serving.scanning import find_versions  # noqa: PLC0415
    from serving.session import require_device  # noqa: PLC0415

    require_device(config.device)
    settings = ModelSettings(device=config.device)
    time_limit = TimeLimit(config.load_timeout_s)
    rows: list[Row] = []
    for name, versions in find_versions(config.repository).items():
        for version in versions:
            try:
                verified = time_limit.run(
                    f"{name}/{version}",
                    partial(
                        open_verified, config.repository / name / str(version), settings, config.repository
                    ),
                )
            except ServingError as error:
                rows.append((name, str(version), "FAILED", str(error)))
            else:
                kind = "synthetic golden" if verified.golden_synthetic else "golden"
                details = (
                    f"{verified.golden_count} {kind} pairs reproduced on {verified.session.provider}, "
                    f"largest difference {verified.largest_difference:.2g}, sha256 {verified.sha256[:12]}"
                )
                rows.append((name, str(version), "ok", details))
    if not rows:
        raise ArtifactError(f"there are no models in {config.repository}; `foldserve export` writes them")
    _print_table(rows)
    status = 1 if any(state == "FAILED" for _, _, state, _ in rows) else 0
    if time_limit.unfinished_count:
        end_process(status)
    return status


def _rows_of_repository(repository: Path) -> list[Row]:
    from serving.artifact import read_artifact  # noqa: PLC0415  # as above
    from serving.scanning import find_versions  # noqa: PLC0415

    rows: list[Row] = []
    for name, versions in find_versions(repository).items():
        for version in versions:
            try:
                artifact = read_artifact(repository / name / str(version), within=repository)
            except ArtifactError as error:
                rows.append((name, str(version), "BROKEN", str(error)))
            else:
                precision = str(artifact.manifest.get("precision", ""))
                details = (
                    f"{len(artifact.golden.runtime_logits[0])} classes, "
                    f"{precision + ', ' if precision else ''}"
                    f"{len(artifact.model) / 1e6:.1f} MB, sha256 {artifact.model_sha256[:12]}"
                    f"{', proven on synthetic images alone' if artifact.golden.synthetic else ''}"
                )
                rows.append((name, str(version), "whole", details))
    return rows


def _rows_of_server(server: str, config: ListConfig) -> list[Row]:
    rows: list[Row] = []
    with Client(server, **connection_options(config)) as client:
        for entry in client.index():
            details = entry.reason
            if entry.state == "READY":
                model = client.describe(entry.name, entry.version)
                details = (
                    f"{len(model.metadata.labels)} classes, {model.provider}, sha256 {model.sha256[:12]}"
                    + (f"; newer files are not served: {entry.reason}" if entry.reason else "")
                )
                if model.metadata.provenance.get("golden_images") == "synthetic":
                    details += ", proven on synthetic images alone"
            rows.append((entry.name, entry.version, entry.state, details))
    return rows


def _print_table(rows: list[Row]) -> None:
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(3)]
    for row in (_HEADINGS, *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=True)]
        print("  ".join([*cells, row[3]]).rstrip())
