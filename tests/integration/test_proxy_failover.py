"""What a request sees when its replica dies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from integration.proxy_fixtures import PATIENCE, Replica, World, answer, eventually, word, world
from integration.proxy_requests import CHAT, STREAM, TEXT, content

from headrace.core.failover import MAX_DEATHS, PROVEN_BY
from headrace.core.streams import Failure


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
