"""Plans how the served versions of one model are brought in line with its folder.

A load may fail, and then an older version may have to serve instead. So `plan` is called again after each
round of loads, until it asks for none: only then does it say what to unload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foldserve.serving.repository.version_policy import VersionPolicy


@dataclass(frozen=True)
class Observed:
    """Describes one model's folder as scanned.

    Attributes:
        versions: those in the folder.
        policy: which of them to serve; None if the settings file may still be being written.
        fault: why nothing in the folder may be loaded; "" if it may.
        promoted: versions that were promoted, the one in force first.
    """

    versions: frozenset[int] = frozenset()
    policy: VersionPolicy | None = None
    fault: str = ""
    promoted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Current:
    """Describes the model as the server has it.

    Attributes:
        known: versions in the index.
        serving: those of them that answer requests.
        missing: versions in the index that the folder did not hold at the previous scan.
        outcomes: results of loading the files as they are now: "" if they serve, why they were refused, or
            None if they are still being written. Versions that have none are still to be tried.
        default: the version that answers requests that name none.
    """

    known: frozenset[int] = frozenset()
    serving: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()
    outcomes: Mapping[int, str | None] = field(default_factory=dict)
    default: int | None = None


@dataclass(frozen=True)
class Load:
    """Load and verify a version; one of that number that serves goes on until the new one is ready."""

    version: int


@dataclass(frozen=True)
class Keep:
    """Keep serving a version: its files are those that serve."""

    version: int


@dataclass(frozen=True)
class Wait:
    """Leave a version as it is until a later scan: its files are still being written, or being moved."""

    version: int


@dataclass(frozen=True)
class Refuse:
    """Record why the files of a version are not served; one of that number that serves goes on."""

    version: int
    reason: str


@dataclass(frozen=True)
class Unload:
    """Stop serving a version that stays in the index, with the reason."""

    version: int
    reason: str


@dataclass(frozen=True)
class Remove:
    """Stop serving a version and drop it from the index: its folder is gone."""

    version: int


Action: TypeAlias = Load | Keep | Wait | Refuse | Unload | Remove


def plan(observed: Observed, current: Current, *, wait_for_writes: bool) -> list[Action]:
    """Return one action for each version, in the order to apply them.

    As long as a version is still to be loaded, nothing is unloaded or removed: apply the plan and make
    another. With ``wait_for_writes``, a version missing from the folder is removed only if the previous scan
    missed it too: it may be being moved.
    """
    absent = current.known - observed.versions
    gone = absent & current.missing if wait_for_writes else absent
    if observed.fault:
        if not observed.versions:  # the folder cannot be read: what was in it may still be there
            gone = frozenset()
        actions: list[Action] = [Refuse(version, observed.fault) for version in sorted(observed.versions)]
    elif observed.policy is None:
        actions = [Wait(version) for version in sorted(observed.versions)]
    else:
        actions = _choose(observed.policy, (current.known | observed.versions) - gone, observed, current)
        if any(isinstance(action, Load) for action in actions):
            return actions
    waiting = absent - gone - {action.version for action in actions}
    return [*actions, *map(Wait, sorted(waiting)), *map(Remove, sorted(gone))]


def _choose(
    policy: VersionPolicy, present: frozenset[int], observed: Observed, current: Current
) -> list[Action]:
    """Return the actions for the preferred versions until enough serve, then the unloads of all others.

    A load counts as one that will succeed. The unloads are left out as long as there are loads.
    """
    chosen: dict[int, Action] = {}
    serving_count = 0
    for version in _by_preference(policy.candidates(present), present, observed, current):
        if policy.is_enough(serving_count):
            break
        action = _try(version, current) if version in observed.versions else Wait(version)
        chosen[version] = action
        serving_count += version in current.serving or isinstance(action, Load)
    actions = list(chosen.values())
    if any(isinstance(action, Load) for action in actions):
        return actions
    reason = f"not served: version_policy is {policy}"
    return [*actions, *(Unload(version, reason) for version in sorted(present - chosen.keys()))]


def _by_preference(
    candidates: list[int], present: frozenset[int], observed: Observed, current: Current
) -> list[int]:
    """Return the ``candidates`` with the promoted version first, whatever the policy says of it.

    Then come the version that answers now, as long as the promoted one is not proven, and those promoted
    before: if the promoted one is refused, they go on.
    """
    if not observed.promoted:
        return candidates
    in_force, *before = observed.promoted
    fallbacks = [version for version in (current.default, *before) if version in candidates]
    return list(dict.fromkeys([*({in_force} & present), *fallbacks, *candidates]))


def _try(version: int, current: Current) -> Action:
    if version not in current.outcomes:
        return Load(version)
    outcome = current.outcomes[version]
    if outcome is None:
        return Wait(version)
    return Refuse(version, outcome) if outcome else Keep(version)
