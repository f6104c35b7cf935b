"""`headrace explain`: the story of a request, from the proxy that had it, through the head, to a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
from cli_fixtures import Result, run_cli
from cluster_fixtures import Cluster, cluster, ready

PROMPT = "You are exact, and answer in one sentence. " * 30


async def explain(c: Cluster, *args: str) -> Result:
    assert c.endpoint
    return await run_cli(
        "explain", *args, env={"HEADRACE_HEAD_ADDRESS": c.endpoint.grpc, "HEADRACE_STATE_DIR": str(c.state)}
    )


async def ask(c: Cluster, request_id: str, tokens: int = 20) -> httpx.Response:
    body: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens}
    async with httpx.AsyncClient(base_url=c.url, timeout=60) as client:
        return await client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": request_id})


async def test_the_story_of_a_request(tmp_path: Path):
    async with cluster(tmp_path) as c:
        await c.head(num_proxies=2)
        c.scheduler("1")
        async with c.admin() as admin:
            await admin.deploy("sim", min_replicas=2, max_replicas=2)
        await c.until(ready(2))
        first, n = await ask(c, "first-0"), 0
        # A proxy may reach one replica a moment before the other.
        while first.headers["x-headrace-route-reason"].startswith("only-replica"):
            n += 1
            assert n < 100
            first = await ask(c, f"first-{n}")
        assert first.status_code == 200
        told = await explain(c, f"first-{n}")
        assert told.code == 0, told.err
        lines = told.out.splitlines()
        assert lines[0].startswith(f"first-{n}: sim, received 20")
        assert f"went to {first.headers['x-headrace-replica']}: {first.headers['x-headrace-route-reason']}" in lines[1]
        assert sum("busy 0" in line for line in lines) == 2
        assert sum("→" in line for line in lines) == 1
        assert lines[-1].endswith("20 tokens of answer")
        assert "ended: length; " in lines[-1]

        # While it runs, and over a replica's death.
        asking = asyncio.create_task(ask(c, "moves", 120))
        story: dict[str, Any] = {}
        async with asyncio.timeout(60):
            while not story.get("tokens"):
                got = await explain(c, "moves", "--json")
                story = json.loads(got.out)["stories"][0] if got.code == 0 else {}
        assert (story["end"], story["ended_s"]) == ("", None)
        where = story["choices"][0]["replica_id"]
        status = await c.until(lambda s: True)
        os.kill(next(r.status.pid for r in status.replicas if r.status.replica_id == where), signal.SIGKILL)
        answer = await asking
        assert answer.status_code == 200, answer.text
        told = await explain(c, "moves")
        assert f"tokens: Replica {where} " in told.out
        assert "failover; by=" in told.out
        story = json.loads((await explain(c, "moves", "--json")).out)["stories"][0]
        assert [m["tokens"] > 0 for m in story["moves"]] == [True]
        assert (story["end"], story["tokens"], len(story["choices"])) == ("length", 120, 2)

        nobody = await explain(c, "who")
        assert (nobody.code, nobody.err) == (
            1,
            "Error: No record of request 'who': 2 proxies were asked; each keeps those of its last 10,000 requests, in"
            " memory.\n",
        )
