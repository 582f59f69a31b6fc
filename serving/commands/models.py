"""Carries out `foldserve models list` and `foldserve models verify`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from foldserve.errors import ArtifactError, FoldserveError
from foldserve.runtime.time_limit import TimeLimit, end_process
from foldserve.serving.client.channel import connection_options
from foldserve.serving.client.connection_config import DEFAULT_SERVER
from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.repository.folder_hints import explain_emptiness
from foldserve.text import legible

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foldserve.serving.client.messages import Description
    from foldserve.serving.commands.command_configs import ListConfig
    from foldserve.verify_config import VerifyConfig

Row: TypeAlias = tuple[str, str, str, str]

_HEADINGS: Row = ("MODEL", "VERSION", "STATE", "DETAILS")


def list_models(config: ListConfig) -> int:
    """Print one line per version; return 0, or 1 if a server was asked and none of its versions is ready.

    Raises:
        ServingError: the repository cannot be read, or no server answers.
    """
    if config.repository is not None:
        folder = config.repository
        rows = _rows_of_repository(
            folder, lambda version: _details_of_files(version, folder), sound="whole", broken="BROKEN"
        )
    else:
        rows = _rows_of_server(config.server or DEFAULT_SERVER, config)
    if rows:
        _print_table(rows)
    else:
        where = config.repository
        print(explain_emptiness(where) if where else f"no models in {config.server or DEFAULT_SERVER}")
    asked_server = config.repository is None
    return 1 if asked_server and not any(state == "READY" for _, _, state, _ in rows) else 0


def verify_models(config: VerifyConfig) -> int:
    """Check the hashes and replay the golden pairs of every version; return 1 if one fails.

    Raises:
        ServingError: the repository cannot be read, or the requested device is missing.
    """
    # Imported here because listing a server's models needs no ONNX Runtime.
    from foldserve.runtime.model_settings import ModelSettings  # noqa: PLC0415
    from foldserve.runtime.session import require_device  # noqa: PLC0415
    from foldserve.runtime.verified_model import open_verified  # noqa: PLC0415

    require_device(config.device)
    settings = ModelSettings(device=config.device)
    time_limit = TimeLimit(config.load_timeout_s)

    def verify(folder: Path) -> str:
        opened = partial(open_verified, folder, settings, config.repository)
        verified = time_limit.run(f"{folder.parent.name}/{folder.name}", opened)
        kind = "synthetic golden" if verified.golden_synthetic else "golden"
        return (
            f"{verified.golden_count} {kind} pairs reproduced on {verified.session.provider}, "
            f"largest difference {verified.largest_difference:.2g}, sha256 {verified.sha256[:12]}"
        )

    rows = _rows_of_repository(config.repository, verify, sound="ok", broken="FAILED")
    if not rows:
        raise ArtifactError(explain_emptiness(config.repository))
    _print_table(rows)
    status = 1 if any(state == "FAILED" for _, _, state, _ in rows) else 0
    if time_limit.unfinished_count:
        end_process(status)
    return status


def _details_of_files(folder: Path, repository: Path) -> str:
    """Return the details of a version that its files alone tell; raises ArtifactError."""
    from foldserve.artifact.format import read_artifact  # noqa: PLC0415  # as above

    artifact = read_artifact(folder, within=repository)
    precision = str(artifact.manifest.get("precision", ""))
    return (
        f"{len(artifact.golden.runtime_logits[0])} classes, "
        f"{precision + ', ' if precision else ''}"
        f"{len(artifact.model) / 1e6:.1f} MB, sha256 {artifact.model_sha256[:12]}"
        f"{', proven on synthetic images alone' if artifact.golden.synthetic else ''}"
    )


def _rows_of_repository(
    repository: Path, describe: Callable[[Path], str], *, sound: str, broken: str
) -> list[Row]:
    """Return one row per version, and one per model whose folder cannot be read."""
    from foldserve.serving.repository.scanner import scan  # noqa: PLC0415  # as above

    rows: list[Row] = []
    for name, found in scan(repository).items():
        if found.fault:
            rows.append((name, "", broken, found.fault))
            continue
        for version in found.versions:
            try:
                rows.append((name, str(version), sound, describe(found.folder / str(version))))
            except FoldserveError as error:
                rows.append((name, str(version), broken, str(error)))
            except Exception as error:  # one broken version must not hide the others
                rows.append((name, str(version), broken, f"{type(error).__name__}: {error}"))
    return rows


def _rows_of_server(server: str, config: ListConfig) -> list[Row]:
    rows: list[Row] = []
    with Client(server, **connection_options(config)) as client:
        for entry in client.index():
            details = entry.reason
            if entry.state == "READY":
                try:
                    details = _describe(client.describe(entry.name, entry.version), entry.reason)
                except (ArtifactError, NotFoundError, UnavailableError) as error:  # unloaded meanwhile
                    details = f"cannot be described: {error}"
            rows.append((entry.name, entry.version, entry.state, details))
    return rows


def _describe(model: Description, reason: str) -> str:
    details = f"{len(model.metadata.labels)} classes, {model.provider}, sha256 {model.sha256[:12]}"
    if reason:
        details += f"; newer files are not served: {reason}"
    if model.metadata.provenance.get("golden_images") == "synthetic":
        details += ", proven on synthetic images alone"
    return details


def _print_table(rows: list[Row]) -> None:
    table = [_HEADINGS, *(tuple(map(legible, row)) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=True)]
        print("  ".join([*cells, row[3]]).rstrip())
