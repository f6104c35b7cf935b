"""Models that are not running yet, and a head that comes and goes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
from authority_fixtures import credentials
from integration.proxy_fixtures import PATIENCE, Replica, World, answer, eventually, world

from headrace.core.route_delta import whole
from headrace.core.types import RouteState, RouteTable
from headrace.errors import NotFound
from headrace.proxy.routes import Routes
from headrace.rpc.channel import Connection
from headrace.rpc.roles import Role

CHAT = {"model": "tinyllama", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}


def ask(w: World, body: dict[str, object] = CHAT) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(w.client.post("/v1/chat/completions", json=body))


async def show(w: World, state: RouteState, reason: str = "") -> None:
    w.head.state("tinyllama", state, reason)
    await shown(w, state)


async def shown(w: World, state: RouteState) -> None:
    def there() -> bool:
        route = w.proxy.routes.table and w.proxy.routes.table.routes.get("tinyllama")
        return bool(route and route.state is state)

    await eventually(there)


def waiting(w: World) -> int:
    return w.proxy.serving.admission.waiting["tinyllama"]


async def test_first_request_deploys_and_waits():
    async with world(0) as w:
        await show(w, RouteState.AVAILABLE)
        w.head.on_ensure = lambda name: w.head.state(name, RouteState.STARTING, "loading, 40 %")
        requests = [ask(w), ask(w), ask(w, STREAM)]
        await shown(w, RouteState.STARTING)
        await eventually(lambda: waiting(w) == 3)
        replica = await Replica("tinyllama-1-0").start()
        w.head.ready("tinyllama", replica)
        whole, _, stream = await asyncio.gather(*requests)
        assert whole.json()["choices"][0]["message"]["content"] == answer(8)
        assert "w7 " in stream.text
        assert w.head.ensured == ["tinyllama"]  # one call for all
        assert waiting(w) == 0
        await replica.die()


async def test_stream_is_kept_alive_with_comments():
    async with world(0) as w:
        await show(w, RouteState.STARTING, "loading, 40 %")
        async with w.client.stream("POST", "/v1/chat/completions", json=STREAM) as r:
            assert r.status_code == 200
            lines = r.aiter_lines()
            assert await anext(lines) == ": waiting for tinyllama: loading, 40 %"
            w.head.state("tinyllama", RouteState.STARTING, "loading, 90 %")
            async for line in lines:
                if line == ": waiting for tinyllama: loading, 90 %":
                    break
            replica = await Replica("tinyllama-1-0").start()
            w.head.ready("tinyllama", replica)
            rest = [line async for line in lines]
            assert rest[-2] == "data: [DONE]"
            await replica.die()


async def test_failure_while_waiting():
    async with world(0) as w:
        await show(w, RouteState.STARTING, "loading")
        whole, stream = ask(w), ask(w, STREAM)
        await eventually(lambda: waiting(w) == 2)
        async with w.client.stream("POST", "/v1/chat/completions", json=STREAM) as begun:
            w.head.state("tinyllama", RouteState.FAILED, "no such folder: /models/x")
            text = (await begun.aread()).decode()
        assert '"error"' in text
        assert "no such folder" in text
        assert "[DONE]" not in text
        r = await whole
        assert r.status_code == 503
        assert r.json()["error"]["code"] == "model_failed"
        assert "no such folder: /models/x" in r.json()["error"]["message"]
        assert "no such folder" in (await stream).text
        # Failed before it came: at once, and the head is told that somebody wants it.
        w.head.ensured.clear()
        r = await ask(w)
        assert r.status_code == 503
        await eventually(lambda: w.head.ensured == ["tinyllama"])


async def test_plain_text_keeps_its_status_while_waiting():
    async with world(0) as w:
        await show(w, RouteState.STARTING, "loading")
        request = asyncio.create_task(
            w.client.post("/v1/chat/tinyllama", content="hi", headers={"Content-Type": "text/plain"})
        )
        await eventually(lambda: waiting(w) == 1)
        await asyncio.sleep(0)
        w.head.state("tinyllama", RouteState.FAILED, "broken")
        assert (await request).status_code == 503


async def test_herd_is_bounded():
    async with world(0, settings={"max_waiting": 5}) as w:
        await show(w, RouteState.AVAILABLE)
        w.head.on_ensure = lambda name: w.head.state(name, RouteState.STARTING, "loading")
        requests = [ask(w) for _ in range(30)]
        done, pending = set(), set(requests)
        while len(done) < 25:
            done, pending = await asyncio.wait(requests, timeout=0.05)
        assert {t.result().status_code for t in done} == {429}
        assert all(t.result().headers["retry-after"] == "5" for t in done)
        assert len(pending) == waiting(w) == 5
        await eventually(lambda: w.head.ensured)  # else it would say STARTING after we have said READY
        replica = await Replica("tinyllama-1-0").start()
        w.head.ready("tinyllama", replica)
        assert [(await t).status_code for t in pending] == [200] * 5
        assert w.head.ensured == ["tinyllama"]
        await replica.die()


async def test_patience_ends():
    async with world(0, patience=replace(PATIENCE, model_s=0.1)) as w:
        await show(w, RouteState.STARTING, "loading")
        r = await ask(w)
        assert r.status_code == 503
        assert r.headers["retry-after"] == "10"
        assert "not ready after 0.1 s" in r.json()["error"]["message"]


async def test_head_refuses_to_deploy():
    async with world(0) as w:
        await show(w, RouteState.AVAILABLE)
        w.head.fail_ensure = NotFound("There is no such model in the catalog.", param="model")
        r = await ask(w)
        assert (r.status_code, r.json()["error"]["param"]) == (404, "model")


async def test_head_away():
    async with world(1) as w:
        await show(w, RouteState.AVAILABLE)
        await w.head.die()
        await eventually(lambda: not w.proxy.routes.connected)
        # What runs goes on from the last table.
        r = await w.client.post("/v1/chat/completions", json=CHAT | {"model": "demo"})
        assert r.status_code == 200
        assert (await w.client.get("/ready")).json()["models"] == ["demo"]
        # What would need the head says so.
        r = await ask(w)
        assert r.status_code == 503
        message = r.json()["error"]["message"]
        assert "the head that could start it cannot be reached" in message
        assert w.head.address not in message, "an address of the cluster's inside is nothing to clients"
        w.head.on_ensure = lambda name: w.head.state(name, RouteState.FAILED, "asked")
        await w.head.revive()
        await eventually(lambda: w.proxy.routes.connected)
        assert "asked" in (await ask(w)).text


async def test_a_proxy_that_missed_a_change_asks_for_the_whole_table():
    async with world(2) as w:
        w.head.lost_deltas = 1
        w.head.state("other", RouteState.STARTING, "loading")
        await asyncio.sleep(0)
        w.head.ready("demo", w.replicas[1])
        await eventually(lambda: w.proxy.routes.table and w.proxy.routes.table.version == w.head.table.version)
        assert w.proxy.routes.table == w.head.table
        assert [s.endpoint.replica_id for s in w.proxy.sessions] == ["demo-1-1"]


async def test_a_replica_is_kept_while_any_route_names_it():
    async with world(2) as w:
        adapted = replace(w.head.table.routes["demo"], name="demo:x", adapter="x")
        w.head.show(adapted)
        w.head.state("demo", RouteState.STARTING, "updating")
        await eventually(lambda: w.proxy.routes.table == w.head.table)
        assert {s.endpoint.replica_id for s in w.proxy.sessions if s.ready} == {"demo-1-0", "demo-1-1"}
        w.head.show(replace(adapted, endpoints=adapted.endpoints[1:]))
        await eventually(lambda: [s.endpoint.replica_id for s in w.proxy.sessions] == ["demo-1-1"])
        moved = replace(adapted.endpoints[1], address=w.replicas[0].endpoint.address)
        w.head.show(replace(adapted, endpoints=(moved,)))
        await eventually(lambda: [s.endpoint for s in w.proxy.sessions] == [moved])
        w.head.table = replace(w.head.table, routes={})
        w.head.show()
        await eventually(lambda: not list(w.proxy.sessions))


async def test_lower_epoch_is_refused():
    async with world(1) as w:
        w.head.show(epoch=5)
        await eventually(lambda: w.proxy.routes.table and w.proxy.routes.table.epoch == 5)
        w.head.table = replace(w.head.table, routes={})
        w.head.show(epoch=4)
        await eventually(lambda: not w.proxy.routes.connected)
        assert w.proxy.routes.table
        assert "demo" in w.proxy.routes.table.routes
        assert (await w.client.post("/v1/chat/completions", json=CHAT | {"model": "demo"})).status_code == 200
        w.head.show(epoch=6)
        await eventually(lambda: w.proxy.routes.table and w.proxy.routes.table.epoch == 6)
        assert not w.proxy.routes.table.routes


async def test_a_proxy_refuses_a_head_older_than_the_one_that_started_it():
    async with Connection("127.0.0.1:1", credentials(Role.PROXY), Role.HEAD) as head:
        routes = Routes(head, "p", least_epoch=7)
        assert not routes.accept(whole(RouteTable(6, 1, {})))
        assert routes.table is None
        assert routes.accept(whole(RouteTable(7, 1, {})))
        assert routes.accept(whole(RouteTable(8, 1, {})))
        assert not routes.accept(whole(RouteTable(7, 2, {})))
