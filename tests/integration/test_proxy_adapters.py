"""Requests for an adapter: the replica is told which when it gets the stream, whatever the table said before."""

from __future__ import annotations

import asyncio

import httpx
from integration.proxy_fixtures import PATIENCE, Replica, World, answer, eventually, world

from headrace.core.streams import Failure
from headrace.core.types import Route, RouteState

MODEL = "demo:a"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
LACKS = Failure("not_loaded", "This replica has no adapter 'a' loaded.")


def ask(w: World) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(w.client.post("/v1/chat/completions", json=CHAT))


def show(w: World, *replicas: Replica, state: RouteState = RouteState.READY, reason: str = "") -> None:
    w.head.show(Route(MODEL, state, reason, tuple(r.endpoint for r in replicas), adapter="a"))


async def test_a_request_waits_for_its_adapter_and_takes_it_from_the_route():
    async with world() as w:
        show(w, state=RouteState.STARTING, reason="loading the adapter a")
        await eventually(lambda: w.proxy.routes.table and MODEL in w.proxy.routes.table.routes)
        request = ask(w)
        await eventually(lambda: w.proxy.serving.admission.waiting[MODEL] == 1)
        assert not w.replicas[0].submits, "not to a replica of the model that lacks it"
        show(w, *w.replicas)
        response = await request
        assert response.json()["choices"][0]["message"]["content"] == answer(8)
        assert [s.adapter for s in w.replicas[0].submits] == ["a"]
        await w.client.post("/v1/chat/completions", json=CHAT | {"model": "demo"})
        assert [s.adapter for s in w.replicas[0].submits] == ["a", ""]
        assert (await w.client.get(f"/v1/models/{MODEL}")).json()["parent"] == "demo"
        by_path = await w.client.post(f"/v1/chat/{MODEL}", content="hi", headers={"Content-Type": "text/plain"})
        assert (by_path.text, w.replicas[0].submits[-1].adapter) == (answer(8), "a")


async def test_a_replica_that_lacks_it_is_passed_over():
    async with world(2) as w:
        w.replicas[0].reject = LACKS
        show(w, *w.replicas)
        await eventually(lambda: w.proxy.routes.table and MODEL in w.proxy.routes.table.routes)
        answers = await asyncio.gather(*[ask(w) for _ in range(8)])
        assert {r.status_code for r in answers} == {200}
        assert len(w.replicas[1].submits) == 8
        await w.clean()


async def test_an_adapter_that_no_replica_has_any_more_is_an_error_and_never_the_model():
    async with world(1, patience=PATIENCE) as w:
        w.replicas[0].reject = LACKS
        show(w, *w.replicas)
        await eventually(lambda: w.proxy.routes.table and MODEL in w.proxy.routes.table.routes)
        response = await ask(w)
        assert response.status_code == 503
        assert response.json()["error"]["message"] == LACKS.message
        assert {s.adapter for s in w.replicas[0].submits} == {"a"}
        await w.clean()
