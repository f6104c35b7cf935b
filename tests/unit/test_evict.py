"""Which cached weights go when something new needs their place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.evict import Kept, make_room

entries = st.lists(
    st.builds(
        Kept, name=st.text(max_size=3), size_bytes=st.integers(1, 100), last_used=st.floats(0, 9), in_use=st.booleans()
    ),
    max_size=8,
    unique_by=lambda k: k.name,
)


@given(entries, st.integers(0, 300), st.integers(0, 500))
def test_the_least_recently_used_go_and_no_more_than_needed(kept: list[Kept], needed: int, limit: int) -> None:
    room = make_room(kept, needed, limit)
    of = {k.name: k for k in kept}
    dropped = [of[name] for name in room.drop]
    left = [k for k in kept if k.name not in room.drop]
    after = sum(k.size_bytes for k in left) + needed
    assert not any(k.in_use for k in dropped)
    assert room.short_bytes == max(0, after - limit)
    assert not room.short_bytes or all(k.in_use for k in left), "short only when nothing more could go"
    assert not dropped or after + dropped[-1].size_bytes > limit, "the last one was needed"
    assert all(a.last_used <= b.last_used for a in dropped for b in left if not b.in_use)
