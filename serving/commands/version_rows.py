"""Describes the versions in a repository, one row each, for `foldserve models list`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foldserve.artifact.format import read_artifact
from foldserve.artifact.manifest_facts import accuracy_of, origin_of
from foldserve.artifact.promotion import read_promotions
from foldserve.errors import ArtifactError, FoldserveError
from foldserve.serving.commands.answering import answering_version
from foldserve.serving.errors import SettingsError
from foldserve.serving.repository.scanner import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from foldserve.artifact.format import Artifact
    from foldserve.serving.repository.scanner import FoundModel


_RUN_CHARACTERS = 40


@dataclass(frozen=True)
class Row:
    """One line of the table; "" where nothing is known."""

    model: str
    version: str
    state: str
    details: str
    accuracy: str = ""
    date: str = ""
    run: str = ""


def rows_of_repository(
    repository: Path, describe: Callable[[Path], str], *, sound: str, broken: str
) -> list[Row]:
    """Return one row per version, and one per model whose folder cannot be read."""
    rows: list[Row] = []
    for name, found in scan(repository).items():
        if found.fault:
            rows.append(Row(name, "", broken, found.fault))
            continue
        for version in found.versions:
            try:
                rows.append(Row(name, str(version), sound, describe(found.folder / str(version))))
            except Exception as error:  # one broken version must not hide the others
                rows.append(Row(name, str(version), broken, _reason(error)))
    return rows


def rows_with_origins(repository: Path) -> list[Row]:
    """Return one row per version, with its accuracy, date and run, and which ones are the same."""
    rows: list[Row] = []
    for name, found in scan(repository).items():
        if found.fault:
            rows.append(Row(name, "", "BROKEN", found.fault))
        else:
            rows += _rows_of_model(name, found, repository)
    return rows


def _rows_of_model(name: str, found: FoundModel, repository: Path) -> list[Row]:
    rows: list[Row] = []
    first_of: dict[str, int] = {}  # the oldest version of each content
    try:
        promotions = read_promotions(found.folder, repository)
    except ArtifactError as error:
        rows.append(Row(name, "", "BROKEN", str(error)))
        promotions = ()
    try:
        default = answering_version(found.folder, list(found.versions), promotions, repository)
    except SettingsError as error:
        rows.append(Row(name, "", "BROKEN", str(error)))
        default = None
    why = "promoted; " if default in {each.version for each in promotions} else "default; "
    for version in found.versions:
        mark = why if version == default else ""
        try:
            artifact = read_artifact(found.folder / str(version), within=repository)
            details = mark + _details(artifact)
            first = first_of.setdefault(artifact.model_sha256, version)
            if first != version:
                details += f", same as {first}"
            rows.append(Row(name, str(version), "complete", details, *_origin(artifact.manifest)))
        except Exception as error:  # one broken version must not hide the others
            rows.append(Row(name, str(version), "BROKEN", mark + _reason(error)))
    return rows


def _details(artifact: Artifact) -> str:
    precision = str(artifact.manifest.get("precision", ""))
    return (
        f"{len(artifact.golden.runtime_logits[0])} classes, "
        f"{precision + ', ' if precision else ''}"
        f"{len(artifact.model) / 1e6:.1f} MB, sha256 {artifact.model_sha256[:12]}"
        f"{', proven on synthetic images alone' if artifact.golden.synthetic else ''}"
    )


def _origin(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return accuracy, date and run as a manifest tells them; anybody may have written it."""
    accuracy, created = accuracy_of(manifest), manifest.get("created_at")
    return (
        "" if accuracy is None else f"{accuracy:.2%}",
        created[:16].replace("T", " ") if isinstance(created, str) else "",
        origin_of(manifest)[:_RUN_CHARACTERS],
    )


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FoldserveError) else f"{type(error).__name__}: {error}"
