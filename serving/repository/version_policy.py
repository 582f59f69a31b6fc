"""Chooses which of a model's versions are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable


_Positive = Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]


class VersionPolicy(BaseModel, frozen=True, extra="forbid"):
    """Serves all versions, the ``latest`` N that load successfully, or the ``specific`` ones.

    A version that is refused does not count as one of the latest: a failed update never replaces the version
    before it, whether the server was started before or after the update.
    """

    latest: _Positive | None = None
    specific: tuple[_Positive, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _read_all(cls, given: Any) -> Any:
        if given == "all":
            return {}
        if isinstance(given, dict) and len(given) == 1:
            return given
        raise ValueError('give "all", { latest = 2 } or { specific = [1, 3] }')

    def candidates(self, versions: Iterable[int]) -> list[int]:
        """Return the ``versions`` that may be served, newest first."""
        return sorted(
            (version for version in versions if self.specific is None or version in self.specific),
            reverse=True,
        )

    def is_enough(self, served_count: int) -> bool:
        """Tell whether ``served_count`` newer versions are enough, so that no older one is to be served."""
        return self.latest is not None and served_count >= self.latest

    def __str__(self) -> str:
        if self.specific is not None:
            return f"specific {', '.join(map(str, self.specific))}"
        return "all" if self.latest is None else f"latest {self.latest}"


# The default.
ALL_VERSIONS = VersionPolicy.model_validate("all")
