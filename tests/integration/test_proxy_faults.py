"""What a request sees when replicas, the head or its own client misbehave."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import replace

import httpx
import pytest
from authority_fixtures import credentials
from integration.proxy_fixtures import PATIENCE, Replica, answer, eventually, raw_request, world
from integration.proxy_requests import CHAT, LONG, STREAM, content

from headrace.core import types as t
from headrace.core.route_delta import whole
from headrace.core.streams import Failure
from headrace.proxy.changed import Changed
from headrace.proxy.session import Session
from headrace.proxy.sessions import Sessions
from headrace.proxy.silence import Silence
from headrace.rpc.roles import Role


async def test_draining_replica_is_tried_elsewhere():
    async with world(2) as w:
        drains, works = w.replicas
        drains.reject = Failure("draining", "This replica is draining.")
        works.waiting = 50  # so that the other one is chosen first
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        for body in (CHAT, STREAM):
            r = await w.client.post("/v1/chat/completions", json=body)
            assert r.status_code == 200
        assert len(drains.submits) == len(works.submits) == 2
        await w.clean()


async def test_draining_frames_move_new_requests():
    async with world(2) as w:
        w.replicas[0].draining = True
        await eventually(lambda: any(s.draining for s in w.proxy.sessions))
        for _ in range(10):
            assert (await w.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert not w.replicas[0].submits


async def test_lost_replicas_come_last():
    async with world(2) as w:
        w.head.ready("demo", *w.replicas, lost={w.replicas[0].name})
        await eventually(lambda: w.proxy.routes.table and w.proxy.routes.table.routes["demo"].endpoints[0].lost)
        for _ in range(10):
            await w.client.post("/v1/chat/completions", json=CHAT)
        assert not w.replicas[0].submits
        w.head.ready("demo", w.replicas[0], lost={w.replicas[0].name})
        await eventually(lambda: w.proxy.routes.table and len(w.proxy.routes.table.routes["demo"].endpoints) == 1)
        assert (await w.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_an_engine_that_does_not_step_loses_its_streams_to_another():
    async with world(2, tokens=20, step_s=0.005, silence=Silence(0.3, 0.8)) as w:
        stalls, works = w.replicas
        works.waiting = 50
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: any(x.position > 3 for x in stalls.live.values()))
        stalls.hold = True  # frames go on coming
        works.waiting = 0
        assert content((await request).text) == (answer(20), [], True)
        assert works.submits[0].resume


async def test_a_long_step_is_not_a_hang():
    async with world(2, tokens=20, step_s=0.005, silence=Silence(0.3, 0.8)) as w:
        slow, other = w.replicas
        other.waiting = 50
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: any(x.position > 3 for x in slow.live.values()))
        slow.computes = slow.hold = True
        await eventually(lambda: any(s.suspect for s in w.proxy.sessions))  # no new requests for it
        await asyncio.sleep(1.5)
        slow.hold = False
        assert content((await request).text) == (answer(20), [], True)
        assert not other.submits
        await w.clean()


async def test_a_stall_is_waited_for_where_there_is_no_other():
    async with world(1, tokens=20, step_s=0.005, silence=Silence(0.1, 0.3)) as w:
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: any(x.position > 3 for x in w.replicas[0].live.values()))
        w.replicas[0].hold = True
        await eventually(lambda: any(s.suspect for s in w.proxy.sessions))
        await asyncio.sleep(0.5)
        w.replicas[0].hold = False
        assert content((await request).text) == (answer(20), [], True)
        assert w.replicas[0].sessions == 1
        await w.clean()


async def test_engine_error_mid_stream():
    async with world(finish_error=Failure("internal", "The engine failed.")) as w:
        text, errors, done = content((await w.client.post("/v1/chat/completions", json=STREAM)).text)
        assert (text, done) == (answer(8), False)
        (told,) = [e["message"] for e in errors]
        assert "X-Request-Id" in told
        assert "engine" not in told, "what fails inside is for the log"
        assert (await w.client.post("/v1/chat/completions", json=CHAT)).status_code == 500
        await w.clean()


async def test_lost_tokens_are_an_error_never_a_gap():
    async with world(lose_at=4) as w:
        text, errors, done = content((await w.client.post("/v1/chat/completions", json=STREAM)).text)
        assert (text, done) == (answer(4), False)
        assert "lost" in errors[0]["message"]
        await w.clean()


async def test_silent_replica_is_avoided_then_given_up():
    async with world(2, silence=Silence(0.15, 0.4)) as w:
        silent, works = w.replicas
        silent.hold = True
        works.waiting = 50
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: silent.submits)
        silent.silent = True
        await eventually(lambda: any(s.suspect for s in w.proxy.sessions))
        assert (await w.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert len(silent.submits) == 1
        assert content((await request).text) == (answer(8), [], True)
        silent.silent = silent.hold = False
        await w.reachable(silent.name)
        await w.clean()


async def test_a_proxy_that_stood_still_blames_no_replica():
    async with world(2, tokens=60, step_s=0.005, silence=Silence(0.15, 0.4)) as w:
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: any(x.position > 3 for r in w.replicas for x in r.live.values()))
        time.sleep(1.0)  # noqa: ASYNC251 - nothing can be read meanwhile
        assert content((await request).text) == (answer(60), [], True)
        assert [r.sessions for r in w.replicas] == [1, 1]
        await w.clean()


async def test_wrong_replica_on_a_port_gets_nothing():
    async with world(1, patience=replace(PATIENCE, replica_s=0.3)) as w:
        thief = w.replicas[0]
        thief.name = "somebody-else"
        await thief.die()
        await eventually(lambda: not any(s.ready for s in w.proxy.sessions))
        await thief.start(int(thief.address.rpartition(":")[2]))
        r = await w.client.post("/v1/chat/completions", json=CHAT)
        assert r.status_code == 503
        assert not thief.submits


async def test_replica_that_comes_back_is_waited_for():
    async with world(1) as w:
        replica = w.replicas[0]
        await replica.die()
        await eventually(lambda: not any(s.ready for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=CHAT))
        await eventually(lambda: w.proxy.serving.admission.waiting["demo"])
        again = await Replica(replica.name).start()  # on another port, as after a restart in place
        w.replicas.append(again)
        w.head.ready("demo", again)
        assert (await request).status_code == 200
        await again.die()


async def test_retired_session_finishes_its_streams():
    async with world(2, tokens=40, step_s=0.005) as w:
        first, second = w.replicas
        second.waiting = 50
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: first.submits)
        w.head.ready("demo", second)
        await eventually(lambda: len(list(w.proxy.sessions)) == 1)
        assert (await w.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1})).status_code == 200
        assert len(second.submits) == 1
        assert content((await request).text) == (answer(40), [], True)


async def test_too_many_streams():
    async with world(settings={"max_streams": 4}, hold=True) as w:
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=CHAT | {"n": 4}))
        await eventually(lambda: w.proxy.serving.moves.running == 4)
        r = await w.client.post("/v1/chat/completions", json=CHAT)
        assert (r.status_code, r.headers["retry-after"]) == (429, "1")
        w.replicas[0].hold = False
        assert (await request).status_code == 200
        await w.clean()


async def test_drain_finishes_streams_and_takes_no_new_ones():
    async with world(tokens=60, step_s=0.005) as w:
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: w.replicas[0].live)
        await w.proxy.drain(15.0)
        assert content((await request).text) == (answer(60), [], True)
        refused = False
        try:
            await raw_request(w.proxy.address, "GET /health HTTP/1.1\nHost: localhost")
        except OSError:
            refused = True
        assert refused


async def test_end_of_drain_is_an_error():
    async with httpx.AsyncClient(timeout=20) as client:
        async with world(**LONG) as w:
            request = asyncio.create_task(client.post(f"{w.url}/v1/chat/completions", json=STREAM))
            await eventually(lambda: w.replicas[0].live)
            await w.proxy.drain(0.05)
        await request
    text, errors, done = content((await request).text)
    assert "shutting down" in errors[0]["message"]
    assert not done
    assert text


async def test_keep_alive_serves_many_requests():
    async with world() as w:
        for _ in range(20):
            assert content((await w.client.post("/v1/chat/completions", json=STREAM)).text)[2]
        assert w.proxy.server.server_state.total_requests == 20
        assert len(w.proxy.server.server_state.connections) == 1


async def test_closing_ends_a_session_that_breaks_at_the_same_moment(monkeypatch: pytest.MonkeyPatch):
    """A task group whose task fails while it is cancelled raises the failure, and the cancellation is lost."""
    tried = asyncio.Event()

    async def breaks_when_cancelled(self: Session, channel: object) -> None:
        tried.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ExceptionGroup("", [OSError("broken pipe")]) from None

    monkeypatch.setattr(Session, "_serve", breaks_when_cancelled)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        sessions = Sessions(tasks, "p", Changed(), Silence(), credentials(Role.PROXY))
        route = t.Route("demo", t.RouteState.READY, "", (t.Endpoint(t.ReplicaId("r"), "127.0.0.1:1"),))
        sessions.apply(whole(t.RouteTable(1, 1, {"demo": route})))
        await tried.wait()
        sessions.close()


async def test_requests_leave_nothing_for_the_collector():
    """Else a busy proxy spends a third of its time there, and grows between its rounds."""
    async with world(1) as w:

        async def ask_all() -> None:
            for body in (CHAT, STREAM, STREAM | {"n": 2}, CHAT | {"model": "nobody's"}):
                await w.client.post("/v1/chat/completions", json=body)
            async with w.client.stream("POST", "/v1/chat/completions", json=STREAM | {"max_tokens": 10**6}) as r:
                await anext(r.aiter_bytes())  # and leave
            await eventually(lambda: not w.proxy.serving.active)

        w.replicas[0].step_s = 0.01
        await ask_all()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await ask_all()
            gc.collect()
            found = {type(x).__qualname__ for x in gc.garbage if type(x).__module__.startswith("headrace.proxy")}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert not found & {"Generation", "Stream", "Writer", "Ticket", "Events", "Collected"}
