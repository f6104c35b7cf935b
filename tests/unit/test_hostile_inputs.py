"""The inputs of benchmarks/hostile.py: each has a name, and none is refused merely for its size."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from strangers.bodies import MOST
from strangers.inputs import INPUTS
from strangers.script import Where
from strangers.table import Measured
from strangers.watch import Gap

_WHERE = Where("127.0.0.1", 1, "k" * 22)
_COSTLY = {"gzip-bomb"}  # seconds to make
_LARGER = {"too-large"}  # whose size is the point


def test_no_body_is_over_the_limit() -> None:
    for hostile in INPUTS:
        if hostile.name in _COSTLY | _LARGER:
            continue
        for talk in hostile.make(_WHERE).talks:
            head, _, body = b"".join(talk.parts).partition(b"\r\n\r\n")
            assert len(body) <= MOST or b"chunked" in head or b"health" in head, hostile.name


def test_names_are_unique() -> None:
    assert len({h.name for h in INPUTS}) == len(INPUTS)
    assert all(h.origin for h in INPUTS)


def _measured(made_s: float = 0.1, grown: int = 0, **more: object) -> Measured:
    usual = {"statuses": {"400": 1}, "wait_s": 0.1, "first_s": 0.1} | more
    gap = Gap(1.0, made_s, made_s, made_s)
    return Measured(
        "a", "b", first="", took_s=1.0, body_bytes=10**6, gaps={"proxy": gap}, grown_bytes={"proxy": grown}, late_s=0.0,
        **usual,  # type: ignore[arg-type]
    )  # fmt: skip


def test_verdicts() -> None:
    assert _measured().wrong() == []
    assert _measured(made_s=0.3).wrong() == ["gap"]
    assert _measured(grown=8 * 10**6 + 2**24).wrong() == []
    assert _measured(grown=8 * 10**6 + 2**24 + 1).wrong() == ["memory"]
    assert _measured(failures={"503": 1}).wrong() == ["others failed"]
    assert _measured(died=["sim"]).wrong() == ["sim died"]
    assert _measured(first_s=6.0).wrong() == ["others waited"]
    assert _measured(statuses={"500": 1}).wrong() == ["status"]
    assert _measured(statuses={"503": 1}).wrong() == []
    assert _measured(statuses={"late": 1}).wrong() == ["no answer"]
    assert _measured(settled=False).wrong() == ["never quiet again"]
