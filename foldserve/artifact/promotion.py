"""Reads and writes which version of a model answers requests that name none: ``NAME/promoted.json``.

The file lies beside the version folders, as ``model.toml`` does. A model without it is served by its newest
version. It lists the promotions in the order in which they were made, so that the one before can be returned
to; the last is in force.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from foldserve.errors import ArtifactError
from foldserve.files import read_regular_file
from foldserve.replacing import sync_folder, write_replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROMOTED_FILE = "promoted.json"
MAX_VERSION = 2**63 - 1

# A promotion takes some 150 bytes.
_MAX_BYTES = 64 * 1024
_MOST_PROMOTIONS = 100

_Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]


class Promotion(BaseModel, frozen=True, strict=True, extra="forbid"):
    """One promotion: the version, the SHA-256 of its model.onnx, and when it was made."""

    version: _Version
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    promoted_at: Annotated[str, Field(pattern="^[0-9T:+-]{1,40}$")]

    @classmethod
    def now(cls, version: int, sha256: str) -> Promotion:
        """Return a promotion made at this moment."""
        return cls(
            version=version, sha256=sha256, promoted_at=datetime.now(UTC).isoformat(timespec="seconds")
        )


class _PromotedFile(BaseModel, frozen=True, strict=True, extra="forbid"):
    schema_version: Literal[1]
    promotions: tuple[Promotion, ...] = Field(min_length=1, max_length=_MOST_PROMOTIONS)


def read_promotions(model_folder: Path, within: Path | None = None) -> tuple[Promotion, ...]:
    """Return a model's promotions, the one in force last; none if no version was promoted.

    ``within`` is the repository, which links must not lead out of; None if the files are trusted.

    Raises:
        ArtifactError: the file cannot be read, or is malformed.
    """
    path = model_folder / PROMOTED_FILE
    if not os.path.lexists(path):
        return ()
    content = read_regular_file(path, within, _MAX_BYTES)
    try:
        return _PromotedFile.model_validate_json(content).promotions
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise ArtifactError(
            f"{PROMOTED_FILE} is malformed: {place}: {fault['msg']}; remove it to serve the newest version, "
            "and promote a version again"
        ) from None


def by_preference(promotions: Sequence[Promotion]) -> tuple[int, ...]:
    """Return the promoted versions, each once: the one in force, then the one before it, and so on."""
    return tuple(dict.fromkeys(promotion.version for promotion in reversed(promotions)))


def default_version(versions: Sequence[int], promotions: Sequence[Promotion]) -> int | None:
    """Return which of the ``versions`` there are answers requests that name none; None if there are none.

    That is the one promoted last of those that are still there, else the newest.
    """
    promoted = (version for version in by_preference(promotions) if version in versions)
    return next(promoted, max(versions, default=None))


def write_promotions(model_folder: Path, promotions: Sequence[Promotion]) -> None:
    """Replace a model's promotions atomically: readers see the old ones or the new ones. None removes them.

    The oldest are dropped if there are very many.

    Raises:
        OSError: the folder cannot be written.
    """
    path = model_folder / PROMOTED_FILE
    if not promotions:
        path.unlink(missing_ok=True)
        sync_folder(model_folder)
        return
    kept = promotions[-_MOST_PROMOTIONS:]
    content = {"schema_version": 1, "promotions": [promotion.model_dump() for promotion in kept]}
    write_replacing(path, json.dumps(content, indent=2) + "\n", durable=True)
