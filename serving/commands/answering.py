"""Tells from a model's folder which version a server lets answer the requests that name none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.artifact.promotion import default_version
from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.repository.model_file import read_model_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foldserve.artifact.promotion import Promotion


def answering_version(
    folder: Path, versions: Sequence[int], promotions: Sequence[Promotion], repository: Path
) -> int | None:
    """Return which of the ``versions`` in a model's ``folder`` answers by default, if it proves itself.

    That is the one in force, whatever the folder's ``version_policy`` says; else, of those that the policy
    allows, the one promoted last or the newest. None if no version is served.

    Raises:
        SettingsError: ``model.toml``, which has the policy, cannot be read or is malformed.
    """
    _, policy = read_model_settings(folder, ModelSettings(), repository)
    if promotions and promotions[-1].version in versions:
        return promotions[-1].version
    return default_version(policy.candidates(versions), promotions)
