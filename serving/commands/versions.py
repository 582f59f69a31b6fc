"""Carries out `foldserve models promote`, `rollback` and `delete`, which change what there is and serves.

Each change is one rename or one removal of a name, so that a server which follows the repository sees all of
it or nothing. None of them opens a model: the server proves a version before it answers with it.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.artifact.format import read_artifact
from foldserve.artifact.numbering import changing, last_version, record_version
from foldserve.artifact.promotion import Promotion, read_promotions, write_promotions
from foldserve.artifact.versions import list_versions
from foldserve.errors import ArtifactError
from foldserve.replacing import sync_folder
from foldserve.serving.commands.answering import answering_version
from foldserve.serving.errors import SettingsError
from foldserve.serving.repository.folder_hints import explain_emptiness
from foldserve.serving.repository.scanner import scan
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from foldserve.serving.commands.command_configs import DeleteConfig, PromoteConfig, RollbackConfig

_DELETED = ".deleted-"


def promote_version(config: PromoteConfig) -> int:
    """Let a version answer the requests that name none; return 0.

    Raises:
        ArtifactError: there is no such version, it is damaged, or its folder cannot be written.
    """
    folder = _model_folder(config.repository, config.name)
    with _changing(folder):
        digest = _intact(folder, config.version, config.repository)
        promotions = read_promotions(folder, config.repository)
        before = _answering(folder, list_versions(folder), promotions, config.repository) or "none"
        if promotions and (promotions[-1].version, promotions[-1].sha256) == (config.version, digest):
            print(f"{config.name}: version {config.version} is promoted already")
            return 0
        write_promotions(folder, [*promotions, Promotion.now(config.version, digest)])
    print(
        f"{config.name}: version {config.version} answers requests that name none (before: {before}); a "
        "running server follows once it has proven it"
    )
    return 0


def roll_back(config: RollbackConfig) -> int:
    """Return to the version that was promoted before the one in force; return 0.

    Raises:
        ArtifactError: nothing was promoted, or what was promoted before is not there or is another model now.
    """
    folder = _model_folder(config.repository, config.name)
    with _changing(folder):
        promotions = read_promotions(folder, config.repository)
        if not promotions:
            raise ArtifactError(
                f"no version of {config.name} was promoted, so there is nothing to go back to: the newest "
                f"answers; promote another with `foldserve models promote {config.name} VERSION`"
            )
        *kept, undone = promotions
        if kept and _intact(folder, kept[-1].version, config.repository) != kept[-1].sha256:
            raise ArtifactError(
                f"version {kept[-1].version} of {config.name}, promoted before {undone.version}, is not the "
                "model that it was then; promote the version that you want"
            )
        default = _answering(folder, list_versions(folder), kept, config.repository)
        write_promotions(folder, kept)
    why = "" if kept else ", the newest: no version is promoted any more"
    print(f"{config.name}: back from {undone.version} to {default}{why}")
    return 0


def delete_version(config: DeleteConfig) -> int:
    """Delete a version's folder; return 0. It disappears at once and is then removed.

    Raises:
        ArtifactError: there is no such version, it answers requests and ``config.force`` is not set, or the
            folder cannot be written.
    """
    folder = _model_folder(config.repository, config.name)
    with _changing(folder):
        for left in folder.glob(f"{_DELETED}*"):  # of a command that was ended
            shutil.rmtree(left, ignore_errors=True)
        versions = list_versions(folder)
        _check_there(folder, config.version, versions)
        promotions = _readable_promotions(folder, config)
        if not config.force and config.version == (
            default := _answering(folder, versions, promotions, config.repository)
        ):
            others = [version for version in versions if version != default]
            way_out = f"promote another ({_listed(others)}) first" if others else "it is the only one"
            raise ArtifactError(
                f"version {default} of {config.name} answers the requests that name none: {way_out}, or add "
                "--force"
            )
        kept = [each for each in promotions if each.version != config.version]
        if len(kept) < len(promotions):  # first, so that a server lets another answer before this one goes
            write_promotions(folder, kept)
        if last := _last_version(folder, versions, config):  # so that its number never comes again
            record_version(folder, last)
        aside = Path(tempfile.mkdtemp(prefix=_DELETED, dir=folder))
        (folder / str(config.version)).rename(aside / str(config.version))
        sync_folder(folder)
        shutil.rmtree(aside)  # before another command finds it and takes it for one left behind
    rest = [version for version in versions if version != config.version]
    print(f"{config.name}: deleted version {config.version}; {_what_is_left(folder, rest, kept, config)}")
    return 0


def _what_is_left(
    folder: Path, rest: Sequence[int], promotions: Sequence[Promotion], config: DeleteConfig
) -> str:
    if not rest:
        return "no version is left"
    try:
        now = _answering(folder, rest, promotions, config.repository)
    except ArtifactError as error:  # --force deletes whatever model.toml says
        return str(error)
    if now is None:
        return "no version is served: version_policy allows none of those that are left"
    return f"version {now} answers requests that name none"


def _answering(
    folder: Path, versions: Sequence[int], promotions: Sequence[Promotion], repository: Path
) -> int | None:
    try:
        return answering_version(folder, versions, promotions, repository)
    except SettingsError as error:
        raise ArtifactError(
            f"{folder.name}: {error}; until it is mended a server follows no change"
        ) from error


def _readable_promotions(folder: Path, config: DeleteConfig) -> Sequence[Promotion]:
    try:
        return read_promotions(folder, config.repository)
    except ArtifactError:
        if config.force:  # a broken file must not keep everything from being deleted
            return ()
        raise


def _last_version(folder: Path, versions: Sequence[int], config: DeleteConfig) -> int:
    try:
        return last_version(folder, config.repository)
    except ArtifactError:
        if config.force:
            return max(versions)
        raise


def _model_folder(repository: Path, name: str) -> Path:
    models = scan(repository)
    if name not in models:
        there = f"it has {join_names(models)}" if models else explain_emptiness(repository)
        raise ArtifactError(f"there is no model {quote(name)} in {repository}; {there}")
    if models[name].fault:
        raise ArtifactError(f"the model {quote(name)} cannot be used: {models[name].fault}")
    return models[name].folder


def _check_there(folder: Path, version: int, versions: Sequence[int]) -> None:
    if version not in versions:
        raise ArtifactError(f"{folder.name} has no version {version}; it has {_listed(versions)}")


def _intact(folder: Path, version: int, repository: Path) -> str:
    """Return the hash of a version's model, whose files were checked against the manifest."""
    _check_there(folder, version, list_versions(folder))
    try:
        return read_artifact(folder / str(version), within=repository).model_sha256
    except ArtifactError as error:
        raise ArtifactError(
            f"version {version} of {folder.name} is damaged and no server would take it: {error}"
        ) from error


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    try:
        with changing(folder):
            yield
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot be changed: {error.strerror or error}; check who may write to it, and that the "
            "disk is not full"
        ) from error


def _listed(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
