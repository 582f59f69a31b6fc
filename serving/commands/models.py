"""Carries out `foldserve models list` and `foldserve models verify`."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from foldserve.errors import ArtifactError
from foldserve.runtime.time_limit import TimeLimit, end_process
from foldserve.serving.client.channel import connection_options
from foldserve.serving.client.connection_config import DEFAULT_SERVER
from foldserve.serving.client.sync_client import Client
from foldserve.serving.commands.version_rows import Row, rows_of_repository, rows_with_origins
from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.repository.folder_hints import explain_emptiness
from foldserve.text import legible

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.serving.client.messages import Description
    from foldserve.serving.commands.command_configs import ListConfig
    from foldserve.verify_config import VerifyConfig

_HEADINGS = ("MODEL", "VERSION", "STATE", "ACCURACY", "DATE", "RUN", "DETAILS")
_ALWAYS = 3  # columns


def list_models(config: ListConfig) -> int:
    """Print one line per version; return 0, or 1 if a server was asked and none of its versions is ready.

    Raises:
        ServingError: the repository cannot be read, or no server answers.
    """
    if config.repository is not None:
        rows = rows_with_origins(config.repository)
    else:
        rows = _rows_of_server(config.server or DEFAULT_SERVER, config)
    if rows:
        _print_table(rows)
    else:
        where = config.repository
        print(explain_emptiness(where) if where else f"no models in {config.server or DEFAULT_SERVER}")
    asked_server = config.repository is None
    return 1 if asked_server and not any(row.state == "READY" for row in rows) else 0


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

    rows = rows_of_repository(config.repository, verify, sound="ok", broken="FAILED")
    if not rows:
        raise ArtifactError(explain_emptiness(config.repository))
    _print_table(rows)
    status = 1 if any(row.state == "FAILED" for row in rows) else 0
    if time_limit.unfinished_count:
        end_process(status)
    return status


def _rows_of_server(server: str, config: ListConfig) -> list[Row]:
    rows: list[Row] = []
    with Client(server, **connection_options(config)) as client:
        entries = client.index()
        counts = Counter(entry.name for entry in entries)
        defaults = {name: _default(client, name) for name, count in counts.items() if count > 1}
        for entry in entries:
            details = entry.reason
            if entry.state == "READY":
                try:
                    details = _describe(client.describe(entry.name, entry.version), entry.reason)
                except (ArtifactError, NotFoundError, UnavailableError) as error:  # unloaded meanwhile
                    details = f"cannot be described: {error}"
            if defaults.get(entry.name) == entry.version:
                details = f"default; {details}"
            rows.append(Row(entry.name, entry.version, entry.state, details))
    return rows


def _default(client: Client, name: str) -> str:
    """Return the version that answers requests which name none; "" if none serves."""
    try:
        return client.describe(name).version
    except (ArtifactError, NotFoundError, UnavailableError):
        return ""


def _describe(model: Description, reason: str) -> str:
    details = f"{len(model.metadata.labels)} classes, {model.provider}, sha256 {model.sha256[:12]}"
    if reason:
        details += f"; newer files are not served: {reason}"
    if model.metadata.provenance.get("golden_images") == "synthetic":
        details += ", proven on synthetic images alone"
    return details


def _print_table(rows: list[Row]) -> None:
    """Print the rows below their headings; columns that are empty in all rows are left out."""
    cells = [
        (row.model, row.version, row.state, row.accuracy, row.date, row.run, row.details) for row in rows
    ]
    shown = [
        column for column in range(len(_HEADINGS)) if column < _ALWAYS or any(row[column] for row in cells)
    ]
    table = [[row[column] for column in shown] for row in (_HEADINGS, *cells)]
    table = [list(map(legible, row)) for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(len(shown) - 1)]
    for row in table:
        print(
            "  ".join(
                [*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]
            ).rstrip()
        )
