"""More requests than the replicas can take: who waits, who is told to come back, and in which order they are served."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.proxy_fixtures import PATIENCE, Replica, World, answer, eventually, raw_request, world

from headrace.core.streams import Failure
from headrace.core.types import RouteState
from headrace.errors import UserError
from headrace.proxy.security import Keys

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
SLOTS = 2  # of a replica with max_running 1: one runs, and one may wait there
KEYS = """
one    name=one
two    name=two weight=3
vip    name=vip priority=-10
few    name=few max_streams=2
"""


def ask(
    w: World, name: str = "", key: str = "", body: dict[str, Any] = CHAT, **headers: str
) -> asyncio.Task[httpx.Response]:
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    headers |= {"X-Request-Id": name} if name else {}
    return asyncio.create_task(w.client.post("/v1/chat/completions", json=body, headers=headers))


def waiting(w: World) -> int:
    return w.proxy.serving.admission.waiting["demo"]


async def seen(w: World) -> None:
    """The proxy has heard how many the replica runs at a time."""
    await eventually(lambda: all(s.load.max_running for s in w.proxy.sessions))


async def asked(w: World, n: int, *args: Any, **more: Any) -> list[asyncio.Task[httpx.Response]]:
    """Ask so often, one after the other, each time until it waits or is at a replica."""
    tasks: list[asyncio.Task[httpx.Response]] = []
    for _ in range(n):
        before = waiting(w) + sum(s.in_flight for s in w.proxy.sessions)
        tasks.append(ask(w, *args, **more))
        await eventually(lambda b=before: waiting(w) + sum(s.in_flight for s in w.proxy.sessions) > b)
    return tasks


@asynccontextmanager
async def busy(
    tmp_path: Path | None = None, **settings: Any
) -> AsyncIterator[tuple[World, list[asyncio.Task[httpx.Response]]]]:
    """A replica whose only slots are held by two requests; `hold = False` lets it answer them."""
    if tmp_path is not None:
        (tmp_path / "keys").write_text(KEYS)
        settings["api_keys_file"] = tmp_path / "keys"
    # A waiter who is told something just then may come a moment before one whose turn came with its own.
    patience = replace(PATIENCE, busy_s=15.0, better_s=15.0, next_word_s=15.0)
    async with world(1, max_running=1, hold=True, settings=settings, patience=patience) as w:
        await seen(w)
        held = await asked(w, SLOTS, key="one" if tmp_path else "")
        assert waiting(w) == 0
        yield w, held


def order(w: World) -> list[str]:
    """The names of those that came to the replica, without the first two."""
    return [s.request_id for s in w.replicas[0].submits[SLOTS:]]


async def test_who_finds_replicas_busy_waits_and_is_served():
    async with busy() as (w, held):
        more = await asked(w, 5)
        assert waiting(w) == 5
        assert len(w.replicas[0].live) == SLOTS
        w.replicas[0].hold = False
        for r in await asyncio.gather(*held, *more):
            assert r.json()["choices"][0]["message"]["content"] == answer(8)
        assert waiting(w) == 0
        await w.clean()


async def test_a_replica_never_gets_more_than_it_takes():
    async with world(2, max_running=8, tokens=4, step_s=0.002) as w:
        await seen(w)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, *(len(r.live) for r in w.replicas))
                await asyncio.sleep(0)

        watcher = asyncio.create_task(watch())
        answers = await asyncio.gather(*(ask(w) for _ in range(80)))
        watcher.cancel()
        assert {r.status_code for r in answers} == {200}
        assert most <= 9
        await w.clean()


async def test_a_full_queue_refuses_at_once():
    async with busy(max_waiting=3) as (w, held):
        more = await asked(w, 3)
        r = await ask(w)
        assert r.status_code == 429
        assert int(r.headers["retry-after"]) >= 1
        assert r.json()["error"]["code"] == "overloaded"
        # And not that they stayed busy, which it would be told after its patience.
        assert "3 requests are waiting for demo already (all replicas are busy)" in r.json()["error"]["message"]
        assert waiting(w) == 3
        w.replicas[0].hold = False
        assert {r.status_code for r in await asyncio.gather(*held, *more)} == {200}


async def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_no_other():
    async with busy() as (w, held):
        session = next(iter(w.proxy.sessions))
        for _ in range(50):
            session.pulse.held.add(10.0)  # so long requests took of late
        more = await asked(w, 3)
        r = await ask(w, **{"X-Request-Timeout": "4"})  # 2 slots of 10 s each and 3 before it: 20 s
        assert r.status_code == 429
        assert r.headers["retry-after"] == "10"
        assert "about 20 s" in r.json()["error"]["message"]
        r = await ask(w)  # it would wait longer than busy_s of this test
        assert r.status_code == 429
        w.replicas[0].hold = False
        assert {r.status_code for r in await asyncio.gather(*held, *more)} == {200}


async def test_nothing_is_refused_for_its_deadline_before_anything_is_known():
    async with busy() as (w, held):
        more = await asked(w, 3, **{"X-Request-Timeout": "15"})
        w.replicas[0].hold = False
        assert {r.status_code for r in await asyncio.gather(*held, *more)} == {200}


async def test_deadline_passes():
    async with world(1, hold=True, settings={"max_timeout_s": 20}) as w:
        r = await ask(w, **{"X-Request-Timeout": "0.1"})
        assert (r.status_code, r.json()["error"]["code"]) == (408, "timeout")
        assert "0.1 s of its X-Request-Timeout" in r.json()["error"]["message"]
        await w.clean()
        w.replicas[0].hold = False
        w.replicas[0].tokens, w.replicas[0].step_s = 10**6, 0.005
        text = (await ask(w, body=STREAM, **{"X-Request-Timeout": "0.3"})).text
        assert "w0 " in text
        assert "X-Request-Timeout" in text
        assert "[DONE]" not in text
        for wrong in ("0", "-1", "x", "nan", "inf", "21"):
            r = await ask(w, **{"X-Request-Timeout": wrong})
            assert (r.status_code, r.json()["error"]["param"]) == (400, "X-Request-Timeout")
        await w.clean()


async def test_patience_with_busy_replicas_ends():
    async with busy() as (w, held):
        w.proxy.serving.admission._patience = replace(PATIENCE, busy_s=0.2)
        r = await ask(w)
        assert r.status_code == 429
        assert "stayed busy for 0.2 s" in r.json()["error"]["message"]
        text = (await ask(w, body=STREAM)).text
        assert text.startswith(": waiting for demo: all replicas are busy")
        assert '"overloaded"' in text
        w.replicas[0].hold = False
        await asyncio.gather(*held)


async def test_urgent_requests_overtake():
    async with busy() as (w, held):
        more = []
        for name, priority in (("late", 5), ("plain", 0), ("urgent", -5), ("plain2", 0)):
            more += await asked(w, 1, name, body=CHAT | {"priority": priority})
        w.replicas[0].hold = False
        await asyncio.gather(*held, *more)
        assert order(w) == ["urgent", "plain", "plain2", "late"]
        for wrong in (-101, 101, 1.5, "1"):
            assert (await ask(w, body=CHAT | {"priority": wrong})).json()["error"]["param"] == "priority"
        for path, body in (("/v1/chat/demo?priority=3", "hi"), ("/v1/chat/demo?priority=300", "hi")):
            r = await w.client.post(path, content=body, headers={"Content-Type": "text/plain"})
            assert r.status_code == (200 if path.endswith("=3") else 400)


async def test_who_may_be_urgent(tmp_path: Path):
    async with busy(tmp_path) as (w, held):
        w.replicas[0].hold = False
        await asyncio.gather(*held)
        r = await ask(w, key="one", body=CHAT | {"priority": -1})
        assert r.status_code == 403
        assert r.json()["error"]["param"] == "priority"
        assert "'one'" not in r.text
        assert (await ask(w, key="one", body=CHAT | {"priority": 1})).status_code == 200
        assert (await ask(w, key="vip", body=CHAT | {"priority": -10})).status_code == 200
        assert (await ask(w, key="vip", body=CHAT | {"priority": -11})).status_code == 403
        r = await w.client.post(
            "/v1/embeddings",
            json={"model": "demo", "input": "a", "priority": -1},
            headers={"Authorization": "Bearer one"},
        )
        assert r.status_code == 403


async def test_keys_share_by_weight(tmp_path: Path):
    async with busy(tmp_path, max_waiting=100) as (w, held):
        w.client.headers["Connection"] = "close"
        more = await asked(w, 24, "one", key="one")
        more += await asked(w, 24, "two", key="two")
        w.replicas[0].hold = False
        await asyncio.gather(*held, *more)
        first = Counter(order(w)[:24])
        assert abs(first["two"] - 18) <= 2  # a weight of 3 against 1
        assert len(order(w)) == 48


async def test_a_greedy_key_keeps_nobody_out_of_the_queue(tmp_path: Path):
    async with busy(tmp_path, max_waiting=6) as (w, held):
        greedy = await asked(w, 6, key="one")
        assert (await ask(w, key="one")).status_code == 429
        modest = ask(w, "modest", key="vip")
        done, _ = await asyncio.wait(greedy, timeout=15, return_when=asyncio.FIRST_COMPLETED)
        assert [t.result().status_code for t in done] == [429]  # the last of the greedy one's
        assert waiting(w) == 6
        w.replicas[0].hold = False
        assert (await modest).status_code == 200
        assert order(w).index("modest") <= 1
        assert Counter(r.status_code for r in await asyncio.gather(*greedy)) == {200: 5, 429: 1}
        await asyncio.gather(*held)


async def test_streams_of_a_key_may_be_capped(tmp_path: Path):
    async with busy(tmp_path) as (w, held):
        own = await asked(w, 1, key="few")
        r = await ask(w, key="few", body=CHAT | {"n": 2})
        assert (r.status_code, r.json()["error"]["code"]) == (429, "too_many_streams")
        own += await asked(w, 1, key="few")
        assert (await ask(w, key="few")).status_code == 429
        w.replicas[0].hold = False
        assert {r.status_code for r in await asyncio.gather(*held, *own)} == {200}
        assert (await ask(w, key="few", body=CHAT | {"n": 2})).status_code == 200


def test_a_keys_file_that_is_wrong_is_explained(tmp_path: Path):
    file = tmp_path / "keys"
    for text, match in (
        ("k wieght=3", "no setting of a key; there are name, weight, priority, max_streams"),
        ("k weight", "no setting"),
        ("k weight=1 weight=2", "no setting"),
        ("k weight=0", "weight must be a number from 0.01 to 1000, not '0'"),
        ("k priority=-101", "priority must be"),
        ("k max_streams=x", "max_streams must be"),
        ("k name=a/b", "a name has up to 64"),
        ("a name=x\n# and\nb name=x weight=2", "Line 3 .* gives 'x' other settings"),
        ("sha256:00", "no SHA-256 digest"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=match):
            Keys.read(file)
    file.write_text("a name=x weight=2\nb name=x weight=2\nc\n")
    keys = Keys.read(file)
    assert keys.check(b"Bearer a") == keys.check(b"bearer b")
    assert keys.check(b"Bearer c").name.startswith("key-")


async def test_client_leaves_the_queue():
    async with busy() as (w, held):
        more = await asked(w, 3)
        more[0].cancel()
        await eventually(lambda: waiting(w) == 2)
        w.replicas[0].hold = False
        assert {r.status_code for r in await asyncio.gather(*held, *more[1:])} == {200}
        assert len(w.replicas[0].submits) == 4
        await w.clean()
        assert all(s.reserved == 0 for s in w.proxy.sessions)


async def test_many_leave_at_the_moment_of_their_turn():
    """Room that was given to one who leaves is not lost."""
    async with world(1, max_running=1, tokens=1, settings={"max_waiting": 500}) as w:
        await seen(w)
        for _ in range(6):
            tasks = [ask(w) for _ in range(30)]
            await eventually(lambda: waiting(w) >= 5)
            for task in tasks[::2]:
                task.cancel()
            assert {r.status_code for r in await asyncio.gather(*tasks[1::2])} == {200}
        await w.clean()
        await eventually(lambda: all(s.reserved == 0 for s in w.proxy.sessions))
        assert waiting(w) == 0


async def test_streams_that_move_wait_in_no_queue():
    async with world(2, max_running=1, hold=True, patience=replace(PATIENCE, busy_s=15.0)) as w:
        await seen(w)
        first, second = w.replicas
        held = await asked(w, 2 * SLOTS)
        more = await asked(w, 3, "waited")
        assert len(first.live) == len(second.live) == SLOTS
        await first.die()
        await eventually(lambda: len(second.live) == 2 * SLOTS)
        assert waiting(w) == 3
        assert not [s for s in second.submits if s.request_id == "waited"]
        second.hold = False
        assert {r.status_code for r in await asyncio.gather(*held, *more)} == {200}


async def test_a_replica_that_refuses_because_it_is_full_costs_nothing():
    async with world(2) as w:
        w.replicas[0].reject = Failure("overloaded", "full")
        for _ in range(8):
            assert (await ask(w)).status_code == 200


async def test_a_replica_that_fails_again_and_again_is_left_out():
    async with world(2) as w:
        bad, good = w.replicas
        bad.finish_error = Failure("internal", "the engine is confused")
        codes = Counter([(await ask(w)).status_code for _ in range(60)])
        assert codes[500] <= 6  # five in a row, and one may be on its way
        assert codes[200] >= 54
        assert len(good.submits) >= 54
        bad.finish_error, good.reject = None, Failure("internal", "now this one")
        codes = Counter([(await ask(w)).status_code for _ in range(20)])
        assert codes[500] == 20  # of two only one is left out at a time
        text = (await w.client.get("/metrics")).text
        assert f'headrace_replica_weight{{model_name="demo",replica="{good.name}"}} 1.0' in text


async def test_a_bad_request_is_not_its_replicas_fault():
    async with world(2) as w:
        for r in w.replicas:
            r.reject = Failure("invalid_request", "no", "prompt")
        for _ in range(15):
            assert (await ask(w)).status_code == 400
        assert all(s.pulse.record.failures == 0 for s in w.proxy.sessions)


async def test_herd_at_zero_replicas():
    """A thousand at once: one start, a queue up to its cap, the others told at once, and those who wait told too."""
    async with world(0, settings={"max_waiting": 100, "max_streams": 5000}) as w:
        w.head.state("demo", RouteState.AVAILABLE)
        await eventually(lambda: w.proxy.routes.table and "demo" in w.proxy.routes.table.routes)
        w.head.on_ensure = lambda name: w.head.state(name, RouteState.STARTING, "loading, 40 %")
        body = json.dumps(STREAM).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\nHost: localhost\nConnection: close\nContent-Length: {len(body)}"

        async def one() -> bytes:
            reader, writer = await raw_request(w.proxy.address, head, body)
            try:
                return await reader.read()
            finally:
                writer.close()

        tasks = [asyncio.create_task(one()) for _ in range(1000)]
        async with asyncio.timeout(60):
            while sum(t.done() for t in tasks) < 900:
                await asyncio.wait([t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED)
        refused, pending = [t.result() for t in tasks if t.done()], [t for t in tasks if not t.done()]
        assert len(refused) == 900
        assert all(r.startswith(b"HTTP/1.1 429") and b"retry-after: 5" in r.lower() for r in refused)
        assert waiting(w) == 100
        await asyncio.sleep(0.2)  # beyond first_word_s
        replica = await Replica("demo-1-0").start()
        w.head.ready("demo", replica)
        served = await asyncio.gather(*pending)
        assert len(served) == 100
        assert all(b": waiting for demo: loading, 40 %" in s and b"data: [DONE]" in s for s in served)
        assert w.head.ensured == ["demo"]
        await w.clean()
        await replica.die()
