"""The proxy with a real replica process (simulated engine): the two ends of the frame session together."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from integration.proxy_fixtures import World, eventually, world
from integration.replica_fixtures import RunningReplica, a_spec, running

from headrace.core import simulated
from headrace.core.types import Endpoint, Route, RouteState

HELLO = [{"role": "user", "content": "Explain about Machine Learning?"}]
CHAT: dict[str, Any] = {"model": "demo", "messages": HELLO}


def expected(seed: int, count: int) -> str:
    ids = simulated.encode(simulated.chat_prompt(HELLO))
    return simulated.decode(simulated.answer(ids, seed, count))


@asynccontextmanager
async def both(folder: Path, **options: object) -> AsyncIterator[tuple[World, RunningReplica]]:
    async with running(a_spec(options=options), folder) as replica, world(0) as w:
        await replica.ready()
        endpoint = Endpoint(a_spec().replica_id, replica.address)
        w.head.show(Route("demo", RouteState.READY, "", (endpoint,)))
        await w.reachable(replica.replica_id)
        yield w, replica


async def test_answers_are_the_engines_own(tmp_path: Path):
    async with both(tmp_path, answer_tokens=40, step_s=0.001) as (w, _):
        r = await w.client.post("/v1/chat/completions", json=CHAT | {"seed": 5, "n": 3})
        body = r.json()
        assert [c["message"]["content"] for c in body["choices"]] == [expected(5 + i, 40) for i in range(3)]
        assert [c["finish_reason"] for c in body["choices"]] == ["stop"] * 3
        assert body["usage"]["completion_tokens"] == 120
        assert body["usage"]["prompt_tokens"] == len(simulated.encode(simulated.chat_prompt(HELLO)))
        r = await w.client.post(
            "/v1/chat/demo?seed=5&max_tokens=16", content=HELLO[0]["content"], headers={"Content-Type": "text/plain"}
        )
        assert r.text == expected(5, 16)
        # Many at once, each its own.
        async with asyncio.TaskGroup() as tasks:
            many = [
                tasks.create_task(w.client.post("/v1/chat/completions", json=CHAT | {"seed": i, "stream": True}))
                for i in range(40)
            ]
        for i, task in enumerate(many):
            events = [e[6:] for e in task.result().text.split("\n") if e.startswith("data: ")]
            assert events[-1] == "[DONE]"
            text = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1])
            assert text == expected(i, 40)
        await w.clean()


async def test_stop_logprobs_and_refusals(tmp_path: Path):
    async with both(tmp_path, text="one two three four", answer_tokens=18, step_s=0.001) as (w, _):
        post = w.client.post
        r = await post("/v1/chat/completions", json=CHAT | {"stop": ["three"]})
        assert r.json()["choices"][0]["message"]["content"] == "one two "
        assert r.json()["choices"][0]["finish_reason"] == "stop"
        r = await post("/v1/chat/completions", json=CHAT | {"logprobs": True, "max_tokens": 4})
        logprobs = r.json()["choices"][0]["logprobs"]["content"]
        assert "".join(t["token"] for t in logprobs) == r.json()["choices"][0]["message"]["content"]
        assert len(logprobs) == 4
        r = await post("/v1/completions", json={"model": "demo", "prompt": "x" * 200_000})
        assert (r.status_code, r.json()["error"]["code"]) == (400, "context_length_exceeded")
        await w.clean()


async def test_kill_mid_stream_then_another_process(tmp_path: Path):
    async with both(tmp_path / "a", answer_tokens=100_000, step_s=0.005) as (w, replica):
        asked = CHAT | {"stream": True, "seed": 1, "max_tokens": 200, "stop": ["never said"]}
        asked |= {"stream_options": {"include_usage": True}, "ignore_eos": True, "temperature": 0.7}
        begun = asyncio.Event()

        async def stream() -> str:
            seen = ""
            async with w.client.stream("POST", "/v1/chat/completions", json=asked) as r:
                async for piece in r.aiter_text():
                    seen += piece
                    begun.set()
            return seen

        async with asyncio.TaskGroup() as tasks:
            streams = [tasks.create_task(stream()) for _ in range(4)]
            await begun.wait()
            os.kill(replica.child.pid, signal.SIGKILL)
            await eventually(lambda: not any(s.ready for s in w.proxy.sessions))
            waits = tasks.create_task(w.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 4, "seed": 1}))
            await eventually(lambda: w.proxy.serving.admission.waiting["demo"])
            async with running(a_spec(options={"answer_tokens": 100_000, "step_s": 0.005}), tmp_path / "b") as again:
                await again.ready()
                w.head.show(Route("demo", RouteState.READY, "", (Endpoint(a_spec().replica_id, again.address),)))
                assert (await waits).json()["choices"][0]["message"]["content"] == expected(1, 4)
                for task in streams:
                    seen = await task
                    events = [json.loads(e[6:]) for e in seen.split("\n") if e.startswith("data: {")]
                    texts = [c["delta"].get("content", "") for e in events for c in e["choices"]]
                    assert "".join(texts) == expected(1, 200)
                    assert events[-1]["usage"]["completion_tokens"] == 200
                    assert seen.endswith("data: [DONE]\n\n")
                await w.clean()


async def test_client_that_leaves_frees_the_engine(tmp_path: Path):
    async with both(tmp_path, answer_tokens=100_000, step_s=0.005) as (w, replica):
        async with w.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True, "n": 4}) as r:
            await anext(r.aiter_text())
        await replica.status_when(lambda s: s.load.running == 0, 20.0)
        await w.clean()
