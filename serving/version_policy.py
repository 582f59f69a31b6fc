"""Which of a model's versions are to be served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable


_Positive = Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]


class VersionPolicy(BaseModel, frozen=True, extra="forbid"):
    """All versions; the ``latest`` so many that prove themselves; or the ``specific`` ones.

    A version that is refused does not count as one of the latest, so an update that fails never takes the
    place of what served before it, whether the server was started before or after the update.
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
        """Return those of ``versions`` that may be served, the newest first."""
        return sorted(
            (version for version in versions if self.specific is None or version in self.specific),
            reverse=True,
        )

    def is_enough(self, served_count: int) -> bool:
        """Tell whether no older version is wanted beside ``served_count`` newer ones that serve."""
        return self.latest is not None and served_count >= self.latest

    def __str__(self) -> str:
        if self.specific is not None:
            return f"specific {', '.join(map(str, self.specific))}"
        return "all" if self.latest is None else f"latest {self.latest}"


# What holds for a model that says nothing.
ALL_VERSIONS = VersionPolicy.model_validate("all")
