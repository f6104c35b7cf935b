"""What a cache drops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.evict import CacheEntry, choose

entries = st.lists(
    st.builds(
        CacheEntry,
        name=st.uuids().map(str),
        size_bytes=st.integers(0, 100),
        used_at=st.floats(0, 1e9),
        in_use=st.booleans(),
    ),
    max_size=12,
)
sizes = st.integers(0, 600)


@given(entries, sizes, sizes)
def test_what_is_dropped(there: list[CacheEntry], limit: int, needed: int) -> None:
    dropped = choose(there, limit, needed)
    used = sum(e.size_bytes for e in there if e.in_use)
    if dropped is None:
        assert used + needed > limit, "only if nothing helps"
        return
    assert not any(e.in_use for e in dropped)
    kept = [e for e in there if e not in dropped]
    total = sum(e.size_bytes for e in kept) + needed
    assert total <= limit
    idle = [e for e in kept if not e.in_use and e.size_bytes]
    assert all(d.used_at <= k.used_at for d in dropped for k in idle), "least recently used first"
    if dropped:
        assert total + dropped[-1].size_bytes > limit, "no more than needed"


def test_an_example() -> None:
    old, held, new = CacheEntry("old", 4, 1.0), CacheEntry("held", 4, 0.0, True), CacheEntry("new", 4, 2.0)
    assert choose([new, held, old], 12, 3) == [old]
    assert choose([new, held, old], 12, 8) == [old, new]
    assert choose([new, held, old], 12, 9) is None
    assert choose([new, held, old], 12, 0) == []
