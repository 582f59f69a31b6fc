"""Tests plans for one model: any folder, any serving versions, any policy, any failing loads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.serving.repository.plan import (
    Action,
    Current,
    Keep,
    Load,
    Observed,
    Refuse,
    Remove,
    Unload,
    Wait,
    plan,
)
from foldserve.serving.repository.version_policy import ALL_VERSIONS, VersionPolicy

_numbers = st.integers(1, 6)
_subsets = st.frozensets(_numbers)
_policies = st.one_of(
    st.just(ALL_VERSIONS),
    st.builds(lambda count: VersionPolicy.model_validate({"latest": count}), st.integers(1, 4)),
    st.builds(
        lambda versions: VersionPolicy.model_validate({"specific": sorted(versions)}),
        st.frozensets(_numbers, min_size=1),
    ),
)
_outcomes = st.dictionaries(_numbers, st.sampled_from(["", "refused", None]))


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    fault = draw(st.sampled_from(["", "", "", "model.toml is not TOML"]))
    policy = None if fault else draw(st.one_of(st.none(), _policies, _policies, _policies))
    promoted = draw(st.lists(_numbers, max_size=3, unique=True))
    return Observed(draw(_subsets), policy, fault, tuple(promoted))


@st.composite
def servers(draw: st.DrawFn) -> Current:
    known = draw(_subsets)
    serving = frozenset(version for version in known if draw(st.booleans()))
    # Files with the outcome "" are those that serve.
    outcomes = {
        version: outcome
        for version, outcome in draw(_outcomes).items()
        if outcome != "" or version in serving
    }
    default = draw(st.sampled_from([None, *sorted(serving)]))
    return Current(known, serving, draw(_subsets) & known, outcomes, default)


@dataclass
class Server:
    """Applies plans as a server does; loads end as ``loads`` says: "" serves, a reason, None: incomplete."""

    state: Current
    loads: dict[int, str | None]
    was_tried: set[int] = field(default_factory=set)
    history: list[Action] = field(default_factory=list)

    def follow(self, observed: Observed, *, wait_for_writes: bool) -> list[Action]:
        """Plan and apply until there is nothing to load; return the last plan."""
        while True:
            actions = plan(observed, self.state, wait_for_writes=wait_for_writes)
            for action in actions:
                self._apply(action)
                if isinstance(action, Load):
                    break
            else:
                self.state = replace(self.state, missing=self.state.known - observed.versions)
                return actions

    def _apply(self, action: Action) -> None:
        self.history.append(action)
        version, now = action.version, self.state
        match action:
            case Load():
                assert version not in self.was_tried, "loaded twice in one round"
                self.was_tried.add(version)
                outcome = self.loads.get(version, "")
                now = replace(now, known=now.known | {version}, outcomes={**now.outcomes, version: outcome})
                if outcome == "":
                    now = replace(now, serving=now.serving | {version})
            case Unload() | Remove():
                outcomes = {key: value for key, value in now.outcomes.items() if key != version}
                now = replace(now, serving=now.serving - {version}, outcomes=outcomes)
                if isinstance(action, Remove):
                    now = replace(now, known=now.known - {version})
                else:
                    now = replace(now, known=now.known | {version})
            case Refuse():
                now = replace(now, known=now.known | {version})
        self.state = now


@given(observations(), servers(), st.booleans())
def test_each_version_has_one_action_and_nothing_is_unloaded_beside_a_load(
    observed: Observed, current: Current, wait_for_writes: bool
) -> None:
    actions = plan(observed, current, wait_for_writes=wait_for_writes)
    versions = [action.version for action in actions]
    assert len(versions) == len(set(versions))
    if any(isinstance(action, Load) for action in actions):
        assert not any(isinstance(action, Unload | Remove) for action in actions)
    else:
        assert set(versions) == observed.versions | current.known


@given(observations(), servers(), _outcomes, st.booleans())
def test_versions_are_unloaded_only_after_every_wanted_version_was_tried(
    observed: Observed, current: Current, loads: dict[int, str | None], wait_for_writes: bool
) -> None:
    server = Server(current, loads)
    server.follow(observed, wait_for_writes=wait_for_writes)
    kinds = [isinstance(action, Unload | Remove) for action in server.history]
    first_down = kinds.index(True) if True in kinds else len(kinds)
    assert not any(isinstance(action, Load) for action in server.history[first_down:])
    # Only what is gone, or what the policy does not want, is taken down.
    for action in server.history[first_down:]:
        if isinstance(action, Remove):
            assert action.version not in observed.versions
        elif isinstance(action, Unload):
            assert observed.policy is not None


@given(observations(), servers(), _outcomes, st.booleans())
def test_policy_holds_after_any_loads_have_failed(
    observed: Observed, current: Current, loads: dict[int, str | None], wait_for_writes: bool
) -> None:
    server = Server(current, loads)
    server.follow(observed, wait_for_writes=wait_for_writes)
    serving, policy = server.state.serving, observed.policy
    if policy is None:
        assert not server.was_tried, "nothing is loaded without valid settings"
        assert current.serving - serving <= current.known - observed.versions
        return
    # The promoted version serves whatever the policy says.
    wanted = {*policy.candidates(server.state.known), *({*observed.promoted[:1]} & server.state.known)}
    assert serving <= wanted
    assert policy.latest is None or len(serving) <= policy.latest
    if not policy.is_enough(len(serving)):
        assert all(version in server.state.outcomes for version in wanted if version in observed.versions)
        assert current.serving & wanted <= serving
    could_serve = {version for version in wanted if server.state.outcomes.get(version) == ""}
    assert could_serve <= serving


@given(observations(), servers(), _outcomes, st.booleans())
def test_second_scan_of_the_same_folder_changes_nothing(
    observed: Observed, current: Current, loads: dict[int, str | None], wait_for_writes: bool
) -> None:
    server = Server(current, loads)
    server.follow(observed, wait_for_writes=False)
    before = server.state
    actions = server.follow(observed, wait_for_writes=wait_for_writes)
    assert not any(isinstance(action, Load | Remove) for action in actions)
    assert server.state == before


@given(observations(), servers())
def test_version_that_is_being_moved_is_removed_at_the_second_scan(
    observed: Observed, current: Current
) -> None:
    absent = current.known - observed.versions
    server = Server(replace(current, missing=frozenset()), {})
    first = server.follow(observed, wait_for_writes=True)
    assert not any(isinstance(action, Remove) for action in first)
    second = server.follow(observed, wait_for_writes=True)
    removed = {action.version for action in second if isinstance(action, Remove)}
    is_unreadable = bool(observed.fault) and not observed.versions
    assert removed == (frozenset() if is_unreadable else absent)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param("", Keep(2), id="served"),
        pytest.param("refused", Refuse(2, "refused"), id="refused"),
        pytest.param(None, Wait(2), id="still being written"),
    ],
)
def test_files_that_were_tried_are_not_loaded_again(outcome: str | None, expected: Action) -> None:
    current = Current(frozenset({2}), frozenset({2}), outcomes={2: outcome})
    observed = Observed(frozenset({2}), ALL_VERSIONS)
    assert plan(observed, current, wait_for_writes=True) == [expected]


def test_failed_update_leaves_the_older_version_serving() -> None:
    latest = VersionPolicy.model_validate({"latest": 1})
    server = Server(Current(frozenset({1}), frozenset({1}), outcomes={1: ""}), {2: "wrong hash"})
    actions = server.follow(Observed(frozenset({1, 2}), latest), wait_for_writes=True)
    assert actions == [Refuse(2, "wrong hash"), Keep(1)]
    assert server.state.serving == {1}


@pytest.mark.parametrize("policy", [{"latest": 1}, {"latest": 2}, {"specific": [1, 3]}])
def test_promoted_version_is_loaded_first_whatever_the_policy(policy: dict[str, object]) -> None:
    chosen = VersionPolicy.model_validate(policy)
    server = Server(Current(), {})
    server.follow(Observed(frozenset({1, 2, 3}), chosen, promoted=(2,)), wait_for_writes=True)
    assert server.history[0] == Load(2)
    others = {"latest": {1: set(), 2: {3}}, "specific": {}}
    expected = {1, 3} if "specific" in policy else others["latest"][chosen.latest or 0]
    assert server.state.serving == {2} | expected


def test_refused_promotion_leaves_what_answers() -> None:
    """Of the versions promoted before only the first, if it is not the one that answers."""
    latest = VersionPolicy.model_validate({"latest": 1})
    state = Current(frozenset({1}), frozenset({1}), outcomes={1: ""}, default=1)
    server = Server(state, {2: "wrong hash"})
    server.follow(Observed(frozenset({1, 2, 3}), latest, promoted=(2,)), wait_for_writes=True)
    assert server.state.serving == {1}
    starting = Server(Current(), {2: "wrong hash"})
    starting.follow(Observed(frozenset({1, 2, 3}), latest, promoted=(2, 1)), wait_for_writes=True)
    assert starting.state.serving == {1}


def test_folder_that_cannot_be_read_takes_nothing_down() -> None:
    current = Current(frozenset({1}), frozenset({1}))
    observed = Observed(fault="its folder cannot be read")
    assert plan(observed, current, wait_for_writes=False) == [Wait(1)]
