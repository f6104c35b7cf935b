"""What a request sees when replicas, the head or its own client misbehave."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from integration.proxy_fixtures import PATIENCE, Replica, World, answer, eventually, raw_request, word, world

from headrace.core import types as t
from headrace.core.failover import MAX_DEATHS, PROVEN_BY
from headrace.core.route_delta import whole
from headrace.core.streams import Failure
from headrace.proxy.changed import Changed
from headrace.proxy.session import Session, Silence
from headrace.proxy.sessions import Sessions

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
TEXT = {"Content-Type": "text/plain"}
LONG = {"tokens": 1_000_000, "step_s": 0.002}


def content(sse: str) -> tuple[str, list[dict[str, Any]], bool]:
    """Text, errors, and whether it ended with [DONE]."""
    text, errors = "", []
    events = [e.removeprefix("data: ") for e in sse.split("\n") if e.startswith("data: ")]
    for e in events:
        if e != "[DONE]":
            chunk = json.loads(e)
            if "error" in chunk:
                errors.append(chunk["error"])
            else:
                text += "".join(c["delta"].get("content", "") for c in chunk["choices"])
    return text, errors, bool(events) and events[-1] == "[DONE]"


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


async def test_replica_death_before_the_first_token_is_not_seen():
    async with world(2) as w:
        dies, works = w.replicas
        dies.hold = True
        works.waiting = 50
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        async with asyncio.TaskGroup() as tasks:
            whole = tasks.create_task(w.client.post("/v1/chat/completions", json=CHAT | {"n": 2}))
            stream = tasks.create_task(w.client.post("/v1/chat/completions", json=STREAM))
            await eventually(lambda: len(dies.submits) == 3)
            await dies.die()
        assert [c["message"]["content"] for c in whole.result().json()["choices"]] == [answer(8)] * 2
        assert content(stream.result().text) == (answer(8), [], True)
        await w.clean()


async def test_a_request_that_kills_two_replicas_is_not_given_to_a_third():
    async with world(4, hold=True) as w:
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        for _ in range(MAX_DEATHS):
            victim: Replica = await eventually(lambda: next((r for r in w.replicas if r.live), None))
            await victim.die()
        r = await request
        assert (r.status_code, r.json()["error"]["code"]) == (422, "request_quarantined")
        # The same prompt again gets no replica for a while; others do.
        r = await w.client.post("/v1/chat/completions", json=CHAT)
        assert (r.status_code, r.json()["error"]["code"]) == (422, "request_quarantined")
        assert sum(len(r.submits) for r in w.replicas) == MAX_DEATHS
        for replica in w.replicas:
            replica.hold = False
        other = CHAT | {"messages": [{"role": "user", "content": "other"}]}
        assert (await w.client.post("/v1/chat/completions", json=other)).status_code == 200
        await w.clean()


async def test_bystanders_of_a_request_that_kills_are_not_taken_for_it():
    """Streams that flow where it begins, twice, go on at the third; and so do those that begin beside it."""
    async with world(3, tokens=300, step_s=0.005, crash_on="poison") as w:
        flowing = [asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM)) for _ in range(12)]
        await eventually(lambda: all(all(x.position > PROVEN_BY for x in r.live.values()) for r in w.replicas))
        poison = STREAM | {"messages": [{"role": "user", "content": "poison"}]}
        killer = asyncio.create_task(w.client.post("/v1/chat/completions", json=poison))
        for task in flowing:
            assert content((await task).text) == (answer(300), [], True)
        _, errors, done = content((await killer).text)
        assert ([e["code"] for e in errors], done) == (["request_quarantined"], False)
        assert sum(r.died for r in w.replicas) == MAX_DEATHS


async def first_dies(w: World, at: int = 3) -> tuple[Replica, Replica]:
    """Make the first replica the one that is chosen, and die in mid-answer; the second lives."""
    dies, works = w.replicas
    dies.die_at, works.waiting = at, 50
    await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
    return dies, works


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"seed": 7}, {"stop": ["never"]}, {"presence_penalty": 1.0}])
async def test_replica_death_mid_stream_is_a_pause_and_nothing_else(more: dict[str, Any]):
    async with world(2, tokens=20, step_s=0.005) as w:
        dies, works = await first_dies(w)
        usage = {"stream_options": {"include_usage": True}}
        r = await w.client.post("/v1/chat/completions", json=STREAM | usage | more)
        n = more.get("n", 1)
        events = [json.loads(e[6:]) for e in r.text.split("\n") if e.startswith("data: {")]
        for choice in range(n):
            texts = [c["delta"].get("content", "") for e in events for c in e["choices"] if c["index"] == choice]
            assert "".join(texts) == answer(20)
        assert content(r.text)[1:] == ([], True)
        assert events[-1]["usage"]["completion_tokens"] == 20 * n
        assert (len(dies.submits), len(works.submits)) == (n, n)
        for submit in works.submits:
            assert submit.resume
            assert submit.resume.text_chars == len(answer(len(submit.resume.token_ids)))
            assert len(submit.resume.token_ids) >= 1
        page = (await w.client.get("/metrics")).text
        assert f'headrace_failover_gap_seconds_count{{model_name="demo"}} {n}.0' in page
        await w.clean()


async def test_replica_death_mid_stream_of_what_cannot_go_on_is_one_typed_error():
    async with world(2, tokens=20, step_s=0.005) as w:
        _, works = await first_dies(w)
        r = await w.client.post("/v1/chat/completions", json=STREAM | {"response_format": {"type": "json_object"}})
        text, errors, done = content(r.text)
        assert (r.status_code, text, done) == (200, answer(3), False)
        assert [(e["type"], e["code"]) for e in errors] == [("service_unavailable_error", "stream_cannot_continue")]
        assert not works.submits
        await w.clean()


@pytest.mark.parametrize("guided", [False, True])
async def test_replica_death_mid_answer_without_streaming_is_not_seen(guided: bool):
    """What cannot go on begins again: the client has had nothing."""
    async with world(2, tokens=20, step_s=0.005) as w:
        _, works = await first_dies(w)
        more = {"response_format": {"type": "json_object"}} if guided else {}
        r = await w.client.post("/v1/chat/completions", json=CHAT | {"logprobs": True} | more)
        choice = r.json()["choices"][0]
        assert choice["message"]["content"] == answer(20)
        assert [t["token"] for t in choice["logprobs"]["content"]] == [word(i) for i in range(20)]
        assert bool(works.submits[0].resume) is not guided
        await w.clean()


async def test_only_a_replica_of_the_same_kind_takes_a_stream_up():
    patience = replace(PATIENCE, replica_s=0.3)
    async with world(2, tokens=20, step_s=0.005, patience=patience) as w:
        _, works = await first_dies(w)
        works.fingerprint = "another revision"
        await works.die()
        await works.start(int(works.address.rpartition(":")[2]))
        await eventually(lambda: any(s.fingerprint == works.fingerprint for s in w.proxy.sessions))
        works.waiting = 50
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        text, errors, done = content((await w.client.post("/v1/chat/completions", json=STREAM)).text)
        assert (text, len(errors), done) == (answer(3), 1, False)
        assert not works.submits
        assert (await w.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        await w.clean()


async def test_what_has_not_been_sent_begins_again_at_another_kind():
    async with world(2, tokens=20, step_s=0.005) as w:
        dies, works = await first_dies(w)
        works.fingerprint = "another revision"
        await works.die()
        await works.start(int(works.address.rpartition(":")[2]))
        await eventually(lambda: any(s.fingerprint == works.fingerprint for s in w.proxy.sessions))
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        r = await w.client.post("/v1/chat/completions", json=CHAT)
        assert r.json()["choices"][0]["message"]["content"] == answer(20)
        assert (len(dies.submits), [s.resume for s in works.submits]) == (1, [None])
        await w.clean()


async def test_replicas_that_die_at_one_moment_quarantine_nobody():
    """A stream that moves to a replica that is dead already, though nobody knows, has killed nothing."""
    async with world(3, tokens=400, step_s=0.005) as w:
        asking = [asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM)) for _ in range(9)]
        await eventually(lambda: all(r.live and min(x.position for x in r.live.values()) > 9 for r in w.replicas))
        ports = [int(r.address.rpartition(":")[2]) for r in w.replicas]
        for r in w.replicas:
            r.silent = True  # dead, and its connections have yet to break
        for r in w.replicas:
            await r.die()
            await asyncio.sleep(0.05)
        w.replicas[0].silent = False
        await w.replicas[0].start(ports[0])
        for task in asking:
            assert content((await task).text) == (answer(400), [], True)


async def test_replica_death_with_no_other_mid_plain_text_breaks_the_connection():
    async with world(die_at=3, step_s=0.005, patience=replace(PATIENCE, replica_s=0.3)) as w:
        got = b""
        broken = False
        try:
            async with w.client.stream("POST", "/v1/chat/demo", content="x", headers=TEXT) as r:
                async for piece in r.aiter_raw():
                    got += piece
        except httpx.RemoteProtocolError:
            broken = True
        assert broken
        assert got.decode().startswith(answer(3) + "\n[error: No replica of demo")
        await w.clean()


async def test_a_drain_that_takes_too_long_moves_its_streams():
    async with world(2, tokens=40, step_s=0.005) as w:
        drains, works = w.replicas
        works.waiting = 50
        await eventually(lambda: any(s.load.waiting == 50 for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: any(x.position > 3 for x in drains.live.values()))
        drains.cut = Failure("draining", "The replica was stopped before the answer was complete.")
        assert content((await request).text) == (answer(40), [], True)
        assert works.submits[0].resume
        await w.clean()


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
        assert [e["message"] for e in errors] == ["The engine failed."]
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


async def test_client_leaves_a_stream():
    async with world(**LONG) as w:
        for path, body in (("/v1/chat/completions", STREAM), ("/v1/completions", {"model": "demo", "prompt": "a"})):
            before = len(w.replicas[0].aborts)
            more = {"n": 3, "max_tokens": 1_000_000}
            request = asyncio.create_task(w.client.post(path, json=body | more))
            await eventually(lambda: len(w.replicas[0].live) == 3)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await eventually(lambda n=before: len(w.replicas[0].aborts) == n + 3)
            await w.clean()


async def test_client_leaves_while_it_waits():
    async with world(hold=True) as w:
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=CHAT))
        await eventually(lambda: w.replicas[0].live)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await w.clean()
        assert len(w.replicas[0].aborts) == 1
        await w.replicas[0].die()
        await eventually(lambda: not any(s.ready for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: w.proxy.serving.admission.waiting["demo"] == 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: w.proxy.serving.admission.waiting["demo"] == 0)
        await w.clean()


async def slow_reader(w: World, tokens: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks for much and reads nothing."""
    host, _, port = w.proxy.address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**10)
    body = json.dumps(STREAM | {"max_tokens": tokens}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def test_slow_reader_overflows_and_gets_an_error():
    big = {"texts": ["x" * 50_000], "tokens": 100_000}
    async with world(**big, settings={"stream_buffer_bytes": 100_000, "stall_s": 15.0}) as w:
        reader, writer = await slow_reader(w, 100_000)
        await eventually(lambda: w.replicas[0].aborts)  # nobody read: the replica is told to stop
        assert (await w.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 2})).status_code == 200
        everything = await reader.read()
        assert b"client_too_slow" in everything
        assert b"[DONE]" not in everything
        writer.close()
        await w.clean()


async def test_reader_that_stops_is_cut():
    big = {"texts": ["x" * 50_000], "tokens": 100_000}
    async with world(**big, settings={"stream_buffer_bytes": 100_000, "stall_s": 0.2}) as w:
        _, writer = await slow_reader(w, 100_000)
        await eventually(lambda: w.replicas[0].submits)
        await w.clean()
        await eventually(lambda: not w.proxy.server.server_state.connections)
        writer.close()


async def test_slow_reader_that_catches_up_misses_nothing():
    async with world(texts=["y" * 20_000], tokens=100, settings={"stream_buffer_bytes": 4_000_000}) as w:
        reader, writer = await slow_reader(w, 100)
        await eventually(lambda: w.replicas[0].submits)
        await eventually(lambda: not w.replicas[0].live)
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        text = b""
        while body:  # undo the chunks
            size, _, body = body.partition(b"\r\n")
            text += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        assert content(text.decode()) == ("y" * 2_000_000, [], True)
        writer.close()
        await w.clean()


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
            await raw_request(w.proxy.address, "GET /health HTTP/1.1\nHost: x")
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
        sessions = Sessions(tasks, "p", Changed(), Silence())
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
