"""A client whose proxy was killed goes on at another with the next token: proxies and replicas are processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from authority_fixtures import STATE
from integration.proxy_fixtures import Head, eventually, free_port
from integration.replica_fixtures import RunningReplica, a_spec, running
from integration.test_proxy_processes import PROGRAM

from headrace.cli.conversation import Conversation
from headrace.core import simulated
from headrace.core.types import Endpoint, ReplicaId, Route, RouteState
from headrace.process import Child, child_env

HELLO = [{"role": "user", "content": "Explain about Machine Learning?"}]
CHAT: dict[str, Any] = {"model": "demo", "messages": HELLO, "stream": True, "ignore_eos": True}
PATH = "/v1/chat/completions"


def expected(count: int) -> str:
    ids = simulated.encode(simulated.chat_prompt(HELLO))
    return simulated.decode(simulated.answer(ids, None, count))


@dataclass
class System:
    head: Head
    replicas: list[RunningReplica]
    proxies: list[Child] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    key: str = ""  # an API key

    def show(self, *replicas: RunningReplica) -> None:
        endpoints = tuple(Endpoint(r.replica_id, r.address) for r in replicas)
        self.head.show(Route("demo", RouteState.READY, "", endpoints))

    async def ready(self, url: str) -> None:
        """Wait until a proxy has sessions with all replicas: it gives each of them something to do."""
        async with httpx.AsyncClient(base_url=url, timeout=20, headers=bearer(self.key)) as client:

            async def one() -> bool:
                try:
                    r = await client.post(PATH, json=CHAT | {"stream": False, "max_tokens": 1})
                except httpx.HTTPError:
                    return False
                return r.status_code == 200

            while not await one():  # noqa: ASYNC110 - the condition is another process's
                await asyncio.sleep(0.05)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@asynccontextmanager
async def system(
    folder: Path, replicas: int = 1, ports: int = 2, keep_s: float = 10.0, keys: str = "", **options: object
) -> AsyncIterator[System]:
    """Real replicas with one address each; two proxies, on one port or two. `keys`: the lines of an API keys file."""
    async with AsyncExitStack() as stack:
        head = await Head().start()
        stack.push_async_callback(head.die)
        made: list[RunningReplica] = []
        for i in range(replicas):
            spec = replace(a_spec(options={"step_s": 0.005, **options}), replica_id=ReplicaId(f"demo-1-{i}"))
            made.append(await stack.enter_async_context(running(spec, folder / f"r{i}")))
        for r in made:
            await r.ready()
        s = System(head, made, key=keys.split()[0] if keys else "")
        s.show(*made)
        for i in range(2):
            if i < ports:
                port, holder = free_port()
                stack.callback(holder.close)
            given = {"http_port": port, "head_address": head.address, "keep_s": keep_s, "drain_s": 0.1}
            given |= {"metrics_dir": str(folder / f"metrics{i}"), "state_dir": str(STATE)}
            if keys:
                (folder / "keys").write_text(keys)
                given["api_keys_file"] = str(folder / "keys")
            command = [sys.executable, "-c", PROGRAM, json.dumps(given)]
            child = Child.spawn(command, env=child_env({}), output=folder / f"proxy{i}.log")
            stack.push_async_callback(child.stop, 2.0)
            s.proxies.append(child)
            s.urls.append(f"http://127.0.0.1:{port}")
        for url in s.urls:
            await asyncio.wait_for(s.ready(url), 30)
        yield s


@dataclass
class Seen:
    """What a client has had: whole events only."""

    text: str = ""
    last: str = ""
    request_id: str = ""
    chat_ids: set[str] = field(default_factory=set)
    ends: list[str] = field(default_factory=list)
    done: int = 0
    usage: dict[str, Any] | None = None
    roles: int = 0

    def event(self, block: str) -> None:
        for line in block.split("\n"):
            if line.startswith("id: "):
                self.last = line[4:]
            if line == "data: [DONE]":
                self.done += 1
            elif line.startswith("data: "):
                data = json.loads(line[6:])
                assert "error" not in data, data
                self.chat_ids.add(data["id"])
                self.usage = data.get("usage") or self.usage
                for c in data["choices"]:
                    self.roles += "role" in c["delta"]
                    self.text += c["delta"].get("content") or ""
                    self.ends += [c["finish_reason"]] if c["finish_reason"] else []


async def read(url: str, body: dict[str, Any], seen: Seen, events: int = 10**9, key: str = "") -> int:
    """Stream into `seen`, also from where it is; stop reading after so many events. The status."""
    headers = {"X-Request-Id": seen.request_id, "Last-Event-ID": seen.last} if seen.last else {"X-Event-Ids": "true"}
    async with httpx.AsyncClient(base_url=url, timeout=30, headers=bearer(key)) as client:
        async with client.stream("POST", PATH, json=body, headers=headers) as r:
            if r.status_code != 200:
                return r.status_code
            seen.request_id = r.headers["x-request-id"]
            held = ""
            try:
                async for piece in r.aiter_text():
                    held += piece
                    *blocks, held = held.split("\n\n")
                    for block in blocks:
                        seen.event(block)
                        events -= 1
                        if events == 0:
                            return 200
            except httpx.RemoteProtocolError:
                pass  # the proxy was killed
        return 200


async def begin_and_lose(s: System, body: dict[str, Any], seen: Seen, events: int = 20) -> None:
    """Read from the first proxy until it is killed, which happens after some events."""
    reading = asyncio.create_task(read(s.urls[0], body, seen, key=s.key))
    await eventually(lambda: seen.last and int(seen.last.split(".")[1]) >= events)
    os.kill(s.proxies[0].pid, signal.SIGKILL)
    assert await reading == 200
    assert not seen.done


async def test_a_client_goes_on_at_another_proxy_with_the_next_token(tmp_path: Path):
    async with system(tmp_path, replicas=2) as s:
        seen, body = Seen(), CHAT | {"max_tokens": 200, "stream_options": {"include_usage": True}}
        await begin_and_lose(s, body, seen)
        assert await read(s.urls[1], body, seen) == 200
        assert seen.text == expected(200)
        assert (seen.ends, seen.done, seen.roles, len(seen.chat_ids)) == (["length"], 1, 1, 1)
        assert seen.usage
        assert seen.usage["completion_tokens"] == 200
        # The whole of it was made once.
        loads = [await r.status_when(lambda st: st.load.running == 0) for r in s.replicas]
        assert sum(st.load.tokens_total for st in loads) < 200 + 2 * 20


async def test_what_was_made_meanwhile_is_told_too_also_when_it_has_ended(tmp_path: Path):
    async with system(tmp_path) as s:
        seen, body = Seen(), CHAT | {"max_tokens": 120, "stop": ["never said"]}
        await begin_and_lose(s, body, seen)
        await s.replicas[0].status_when(lambda st: st.load.running == 0 and st.load.tokens_total >= 120)
        assert await read(s.urls[1], body, seen) == 200
        assert (seen.text, seen.ends, seen.done) == (expected(120), ["length"], 1)
        # As often as it likes, within the time.
        again = replace(seen, text="", ends=[], done=0)
        assert await read(s.urls[1], body, again) == 200
        assert (again.text, again.ends, again.done) == ("", ["length"], 1)


async def test_a_stream_that_was_taken_over_still_survives_its_replica(tmp_path: Path):
    async with system(tmp_path, replicas=2) as s:
        seen, body = Seen(), CHAT | {"max_tokens": 400}
        await begin_and_lose(s, body, seen)
        reading = asyncio.create_task(read(s.urls[1], body, seen))
        had = int(seen.last.split(".")[1])
        await eventually(lambda: int(seen.last.split(".")[1]) > had + 20)
        stats = [await r.status_when(lambda st: True) for r in s.replicas]
        busy = s.replicas[0 if stats[0].load.running else 1]
        os.kill(busy.child.pid, signal.SIGKILL)
        assert await reading == 200
        assert (seen.text, seen.done) == (expected(400), 1)
        assert seen.last.startswith("1.")  # it has moved once


async def test_what_is_not_kept_is_gone_and_frees_the_engine(tmp_path: Path):
    async with system(tmp_path, keep_s=0.5) as s:
        seen, body = Seen(), CHAT | {"max_tokens": 8000}
        await begin_and_lose(s, body, seen)
        await s.replicas[0].status_when(lambda st: st.load.running == 0)
        assert await read(s.urls[1], body, seen) == 410


async def test_only_the_same_request_takes_a_stream_over(tmp_path: Path):
    async with system(tmp_path) as s:
        seen, body = Seen(), CHAT | {"max_tokens": 8000}
        await begin_and_lose(s, body, seen)
        assert await read(s.urls[1], body | {"seed": 1}, seen) == 410
        assert await read(s.urls[1], body, replace(seen, request_id="another")) == 410
        assert await read(s.urls[1], body, replace(seen, last="1" + seen.last[1:])) == 410
        nonce = seen.last.split(".")[4]
        assert await read(s.urls[1], body, replace(seen, last=f"0.9000.1.0.{nonce}")) == 410
        assert await read(s.urls[1], body, replace(seen, last=seen.last.replace(nonce, "A" * 22))) == 410
        assert await read(s.urls[1], body, replace(seen, last="0.1.1.0")) == 400
        assert await read(s.urls[1], body, replace(seen, last="x")) == 400
        assert await read(s.urls[1], body | {"n": 2}, seen) == 400
        assert await read(s.urls[1], body, seen, events=5) == 200
        await s.replicas[0].status_when(lambda st: st.load.running == 0)  # that client has left: nothing is kept for it


async def test_only_the_same_caller_takes_a_stream_over(tmp_path: Path):
    keys = "alices-key name=alice\nalices-next-key name=alice\nbobs-key name=bob\n"
    async with system(tmp_path, keys=keys) as s:
        seen, body = Seen(), CHAT | {"max_tokens": 2000}
        await begin_and_lose(s, body, seen)
        had = seen.last
        assert await read(s.urls[1], body, replace(seen), key="bobs-key") == 410
        # Nor does a request of his with the same id take its place.
        async with httpx.AsyncClient(base_url=s.urls[1], headers=bearer("bobs-key"), timeout=20) as client:
            named = {"X-Request-Id": seen.request_id}
            r = await client.post(PATH, json=body | {"max_tokens": 2}, headers=named)
            assert r.status_code == 200
            assert r.headers["x-request-id"] == seen.request_id
        assert await read(s.urls[1], body, seen, events=20, key="alices-next-key") == 200
        assert int(seen.last.split(".")[1]) > int(had.split(".")[1])
        assert seen.text == expected(2000)[: len(seen.text)]


async def test_headrace_chat_does_so_by_itself(tmp_path: Path):
    async with system(tmp_path, ports=1) as s:
        pieces: list[str] = []

        def chat() -> None:
            with Conversation(s.urls[0], "demo", None, None, {"max_tokens": 400, "ignore_eos": True}) as talk:
                pieces.extend(talk.ask(HELLO[0]["content"]))

        def streams(child: Child) -> bool:
            return "established" in child_connections(child)

        asking = asyncio.create_task(asyncio.to_thread(chat))
        await eventually(lambda: len(pieces) > 5 and any(streams(c) for c in s.proxies))
        await s.replicas[0].status_when(lambda st: st.load.running == 1)
        victim = next(c for c in s.proxies if streams(c))
        os.kill(victim.pid, signal.SIGKILL)
        await asyncio.wait_for(asking, 30)
        assert "".join(pieces) == expected(400)


def child_connections(child: Child) -> set[str]:
    """The states of the HTTP connections that clients have with a proxy."""
    import psutil

    inet = psutil.Process(child.pid).net_connections("tcp")
    port = next((c.laddr.port for c in inet if c.status == psutil.CONN_LISTEN), 0)
    return {c.status.lower() for c in inet if c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED}
