"""What requests may start, and which of that nobody uses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.on_demand import Mark, Rule, Use, idle, mark_of, startable, uses
from headrace.core.types import CatalogEntry, Load, ModelSpec, Resources

CATALOG = {n: CatalogEntry(n, ModelSpec(f"/{n}"), Resources(), on_demand=n == "listed") for n in ("listed", "other")}


def test_the_rule_says_what_requests_may_start() -> None:
    assert set(startable(Rule.ALL, CATALOG)) == {"listed", "other"}
    assert set(startable(Rule.LISTED, CATALOG)) == {"listed"}
    assert startable(Rule.OFF, CATALOG) == {}


marks: st.SearchStrategy[Mark | None] = st.none() | st.tuples(st.integers(0, 2))


@given(st.lists(st.tuples(st.floats(0.01, 10), marks), max_size=40))
def test_idle_is_what_has_not_changed_for_so_long(looks: list[tuple[float, Mark | None]]) -> None:
    seen: dict[str, Use] = {}
    now, used_at, last = 0.0, 0.0, None
    for pause_s, mark in looks:
        now += pause_s
        seen = uses(seen, {"m": mark}, now)
        if mark is None or mark != last:
            used_at = now
        last = mark
        assert idle(seen, now, 15.0) == (["m"] if mark is not None and now - used_at >= 15.0 else [])


def test_what_is_gone_is_forgotten() -> None:
    assert uses({"m": Use((1,), 0.0)}, {}, 5.0) == {}


def test_any_work_leaves_a_mark() -> None:
    quiet = mark_of([Load(step=3)])
    assert mark_of([Load(step=3)]) == quiet
    assert len({quiet, mark_of([Load(step=4)]), mark_of([Load(step=3, tokens_total=1)]), mark_of([Load()] * 2)}) == 4
