"""Going back to an earlier revision, as a decision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.revisions import history, rolled_back
from headrace.core.state import HISTORY, DropDeployment, PutDeployment, State, apply, next_revision
from headrace.core.types import Adapter, Deployment, ModelSpec, Resources
from headrace.errors import InvalidRequest, NotFound


def after(*sources: str) -> tuple[State, Deployment]:
    """A deployment that had these models, one after another."""
    state = State()
    d = Deployment("d", 0, ModelSpec(""), Resources(1.0), 2, 4, 3, 7, (Adapter("a", "/a"),))
    for n, source in enumerate(sources):
        d = replace(d, revision=next_revision(state, "d"), model=ModelSpec(source), revised_unix_s=100 + n)
        state = apply(state, [PutDeployment(d)])
    return state, d


def test_goes_back_as_a_new_revision_and_leaves_range_and_adapters() -> None:
    state, d = after("/a", "/b")
    new = rolled_back(state, d, 0, 999)
    assert new == replace(d, revision=3, model=ModelSpec("/a"), revised_unix_s=999, repeats=1)


def test_skips_what_is_the_same_as_now() -> None:
    """As after a revision that failed was tried again."""
    state, d = after("/good", "/bad", "/bad")
    assert rolled_back(state, d, 0, 1).repeats == 1


def test_forth_and_back() -> None:
    state, d = after("/a", "/b")
    for expected in ("/a", "/b", "/a"):
        d = rolled_back(state, d, 0, 1)
        state = apply(state, [PutDeployment(d)])
        assert d.model.source == expected


@pytest.mark.parametrize(
    ("sources", "to", "said"),
    [
        (["/a"], 0, r"d has no earlier revision that differs from its current one \(1\)"),
        (["/a", "/b"], 2, "Revision 2 of d is the current one; there is nothing to go back to"),
        (["/a", "/b", "/a"], 1, r"Revision 1 of d is the same as the current one \(3\)"),
    ],
)
def test_nothing_to_go_back_to_is_told(sources: list[str], to: int, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        rolled_back(*after(*sources), to, 1)


def test_a_revision_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(NotFound, match="d has no revision 9 to go back to; kept are: 2, 1"):
        rolled_back(*after("/a", "/b"), 9, 1)


@given(st.lists(st.sampled_from(["/a", "/b", "/c"]), min_size=1, max_size=30), st.integers(0, 35))
def test_what_is_kept_is_bounded_and_each_of_it_can_be_gone_back_to(sources: list[str], to: int) -> None:
    state, d = after(*sources)
    kept = history(state, d)
    assert [r.revision for r in kept] == list(range(d.revision, max(0, d.revision - HISTORY), -1))
    try:
        new = rolled_back(state, d, to, 1)
    except (InvalidRequest, NotFound):
        assert not any(r.model != d.model and to in (0, r.revision) for r in kept)
    else:
        assert new.model != d.model
        assert state.revisions["d", new.repeats].model == new.model
        assert new.revision > d.revision
    assert not apply(state, [DropDeployment("d")]).revisions
