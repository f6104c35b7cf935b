"""Endpoints and errors over plain HTTP."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from authority_fixtures import STATE
from integration.proxy_fixtures import PATIENCE, World, answer, eventually, raw_request, world
from integration.proxy_requests import CHAT, TEXT, error

from headrace.core.streams import Failure
from headrace.core.types import Route, RouteState
from headrace.errors import UserError
from headrace.proxy.app import serving
from headrace.settings import ProxySettings


async def test_plain_text():
    async with world() as w:
        r = await w.client.post("/v1/chat/demo", content="Explain about Machine Learning?", headers=TEXT)
        assert (r.status_code, r.text) == (200, answer(8))
        assert r.headers["content-type"] == "text/plain; charset=utf-8"
        assert r.headers["transfer-encoding"] == "chunked"
        sent = w.replicas[0].submits[0]
        assert json.loads(sent.prompt.messages_json) == [{"role": "user", "content": "Explain about Machine Learning?"}]
        query = "max_tokens=2&temperature=0.5&stop=a&stop=b&ignore_eos=true&seed=3"
        r = await w.client.post(
            f"/v1/chat/demo?{query}",
            content="é".encode("latin-1"),
            headers={"Content-Type": "text/plain; charset=ISO-8859-1"},
        )
        assert r.text == answer(2)
        sent = w.replicas[0].submits[1]
        assert json.loads(sent.prompt.messages_json)[0]["content"] == "é"
        assert (sent.sampling.temperature, sent.sampling.ignore_eos, sent.sampling.seed) == (0.5, True, 3)
        assert sent.stop == ("a", "b")
        # No type at all is text; curl -d without a header is not.
        r = await w.client.post("/v1/chat/demo", content=b"hi")
        assert r.text == answer(8)
        await w.clean()


async def test_plain_text_comes_token_by_token():
    async with (
        world(step_s=0.02) as w,
        w.client.stream("POST", "/v1/chat/demo", content="hi", headers=TEXT) as r,
    ):
        pieces = [p async for p in r.aiter_raw()]
        assert len(pieces) >= 4
        assert b"".join(pieces).decode() == answer(8)


async def test_plain_text_errors():
    async with world() as w:
        post = w.client.post
        error(await post("/v1/chat/demo", content="", headers=TEXT), 400, "prompt")
        error(await post("/v1/chat/demo", content="  \n", headers=TEXT), 400, "prompt")
        error(await post("/v1/chat/demo?temperature=9", content="x", headers=TEXT), 400, "temperature")
        error(await post("/v1/chat/demo?temperature=hot", content="x", headers=TEXT), 400, "temperature")
        error(await post("/v1/chat/demo?nonsense=1", content="x", headers=TEXT), 400, "nonsense")
        error(await post("/v1/chat/demo?n=2", content="x", headers=TEXT), 400, "n")
        error(await post("/v1/chat/demo?logprobs=true", content="x", headers=TEXT), 400, "logprobs")
        error(await post("/v1/chat/demo?model=x", content="x", headers=TEXT), 400, "model")
        error(await post("/v1/chat/demo?seed=1&seed=2", content="x", headers=TEXT), 400, "seed")
        error(await post("/v1/chat/demo", content=b"\xff", headers=TEXT), 400)
        message = error(await post("/v1/chat/demo", data={"a": "b"}), 415, code="unsupported_media_type")
        assert "text/plain" in message
        error(await post("/v1/chat/demo", content="x", headers={"Content-Type": "text/plain; charset=klingon"}), 415)
        error(await post("/v1/chat/demo", content="x", headers={"Content-Type": "text/plain; charset=base64"}), 415)
        message = error(await post("/v1/chat/other", content="x", headers=TEXT), 404, "model", "model_not_found")
        assert "demo" in message
        assert not w.replicas[0].submits


async def test_model_path_with_json():
    async with world() as w:
        post = w.client.post
        r = await post("/v1/chat/demo", json={"prompt": "hi", "max_tokens": 3})
        assert r.json()["choices"][0]["message"]["content"] == answer(3)
        r = await post("/v1/chat/demo", json={"messages": CHAT["messages"], "stream": True})
        assert r.headers["content-type"].startswith("text/event-stream")
        assert r.text.endswith("data: [DONE]\n\n")
        error(await post("/v1/chat/demo", json={}), 400, "prompt")
        error(await post("/v1/chat/demo", json={"prompt": "a", "messages": CHAT["messages"]}), 400, "prompt")
        error(await post("/v1/chat/demo", json={"prompt": "a", "model": "other"}), 400, "model")
        error(await post("/v1/chat/demo", content=b"", headers={"Content-Type": "application/json"}), 400)


async def test_sse_bytes():
    async with world(tokens=2) as w:
        r = await w.client.post(
            "/v1/chat/completions", json=CHAT | {"stream": True, "stream_options": {"include_usage": True}}
        )
        events = r.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        # As clients read it that know no more of events than this.
        chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
        assert [c["object"] for c in chunks] == ["chat.completion.chunk"] * 5
        assert [set(c) for c in chunks] == [{"id", "object", "created", "model", "choices", "usage"}] * 5
        assert chunks[0]["choices"] == [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ]
        assert chunks[1]["choices"] == [
            {"index": 0, "delta": {"content": "w0 "}, "logprobs": None, "finish_reason": None}
        ]
        assert chunks[3]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
        assert chunks[4]["choices"] == []
        assert chunks[4]["usage"]["completion_tokens"] == 2


async def test_event_ids_for_who_asks_for_them():
    async with world(tokens=2) as w:
        asks = {"X-Event-Ids": "true"}
        r = await w.client.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=asks)
        events = [e.split("\n") for e in r.text.split("\n\n") if e]
        assert all(first.startswith("data: ") for first, *_ in events)
        # A place to come back to wherever there is text: moves, tokens, characters, those of reasoning, and a secret.
        ids = [line.split(".") for _, *more in events for line in more]
        assert [i[:4] for i in ids] == [["id: 0", "1", "3", "0"], ["id: 0", "2", "6", "0"]]
        (secret,) = {i[4] for i in ids}
        assert len(secret) == 22
        again = await w.client.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=asks)
        assert secret not in again.text
        error(await w.client.post("/v1/chat/completions", json=CHAT, headers={"X-Event-Ids": "x"}), 400, "X-Event-Ids")


async def test_models():
    async with world() as w:
        w.head.state("tinyllama", RouteState.AVAILABLE)
        w.head.state("ns:name", RouteState.FAILED, "no such folder")
        await eventually(lambda: w.proxy.routes.table and len(w.proxy.routes.table.routes) == 3)
        listed = (await w.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [m["id"] for m in listed["data"]] == ["demo", "tinyllama", "ns:name"]
        demo = (await w.client.get("/v1/models/demo")).json()
        assert demo == {
            "id": "demo",
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "headrace",
            "root": "demo",
            "parent": None,
            "max_model_len": 2048,
            "state": "ready",
            "reason": None,
        }
        assert (await w.client.get("/v1/models/ns%3Aname")).json()["reason"] == "no such folder"
        error(await w.client.get("/v1/models/a/b"), 404, "model", "model_not_found")


async def test_request_id():
    async with world() as w:
        r = await w.client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "my-id.7"})
        assert r.headers["x-request-id"] == "my-id.7"
        assert w.replicas[0].submits[0].request_id == "my-id.7"
        r = await w.client.post(
            "/v1/chat/completions", json=CHAT | {"stream": True}, headers={"X-Request-Id": "bad id\u00e9".encode()}
        )
        assert r.headers.get_list("x-request-id") == [w.replicas[0].submits[1].request_id]
        assert r.headers["x-request-id"].startswith("req-")


async def test_health_ready_docs():
    async with world(0) as w:
        assert (await w.client.get("/health")).status_code == 200
        assert (await w.client.head("/health")).status_code == 200
        assert "No model" in error(await w.client.get("/ready"), 503)
        w.head.state("demo", RouteState.AVAILABLE)
        await eventually(lambda: w.proxy.routes.table and w.proxy.routes.table.routes)
        assert (await w.client.get("/ready")).json()["models"] == ["demo"]
        doc = (await w.client.get("/openapi.json")).json()
        assert {"/v1/chat/completions", "/v1/completions", "/v1/chat/{model}", "/v1/models"} <= set(doc["paths"])
        body = doc["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
        fields = doc["components"]["schemas"]["ChatRequest"]["properties"]
        assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
        page = (await w.client.get("/docs")).text
        assert "/v1/chat/{model}" in page
        assert "repetition_penalty" in page
        assert "http://" not in page
        assert "https://" not in page
        assert "<script" not in page


async def test_the_front_says_where_to_go():
    async with world(0) as w:
        text = await w.client.get("/")
        assert text.headers["content-type"].startswith("text/plain")
        page = await w.client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.headers["content-type"].startswith("text/html")
        listed = await w.client.get("/", headers={"Accept": "application/json"})
        places = [p["path"] for p in listed.json()["places"]]
        for r in (text, page, listed):
            assert r.status_code == 200
            assert all(path in r.text for path in places)
            assert "://" not in r.text
            assert "<script" not in r.text
        for path in set(places) - {"/v1/chat/completions", "/v1/chat/MODEL"}:
            assert (await w.client.get(path)).status_code == 200
        assert (await w.client.head("/")).status_code == 200
        error(await w.client.post("/"), 405, code="method_not_allowed")


async def test_refused_requests_are_remembered(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("secret\n")
    async with world(settings={"api_keys_file": file}) as w:
        key = {"Authorization": "Bearer secret"}

        async def why(request_id: str, method: str, path: str, **more: Any) -> tuple[int, str, str]:
            headers = {"X-Request-Id": request_id, **more.pop("headers", key)}
            r = await w.client.request(method, path, headers=headers, **more)
            story = w.proxy.serving.records.story(request_id)
            assert story is not None
            assert (story.status, story.why) == (r.status_code, r.json()["error"]["message"][:300])
            return story.status, story.request, story.model

        chat = "/v1/chat/completions"
        assert await why("a", "POST", chat, json=CHAT | {"max_tokens": -1}) == (400, f"POST {chat}", "")
        assert await why("b", "POST", chat, json=CHAT, headers={}) == (401, f"POST {chat}", "")
        assert await why("c", "GET", "/nowhere") == (404, "GET /nowhere", "")
        assert await why("d", "POST", chat, json=CHAT | {"model": "other"}) == (404, f"POST {chat}", "")
        assert await why("e", "POST", chat, content=b"x", headers=key | {"Content-Type": "image/png"}) == (
            415, f"POST {chat}", "",
        )  # fmt: skip
        r = await w.client.post(chat, json=CHAT, headers=key | {"X-Request-Id": "f"})
        assert r.status_code == 200
        story = w.proxy.serving.records.story("f")
        assert story is not None
        assert (story.status, story.why, story.model) == (0, "", "demo")
        assert (await w.client.get("/")).status_code == 200  # without a key


async def test_no_word_from_the_head_yet():
    async with (
        serving(ProxySettings(http_port=0, head_address="127.0.0.1:1", state_dir=STATE), PATIENCE) as proxy,
        httpx.AsyncClient(base_url=f"http://{proxy.address}") as client,
    ):
        assert (await client.get("/health")).status_code == 200
        assert "the head yet" in error(await client.get("/ready"), 503)
        error(await client.get("/v1/models"), 503)
        assert "the head yet" in error(await client.post("/v1/chat/completions", json=CHAT), 503)


async def test_api_keys(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"# people\nsecret-one\n\nsha256:{hashlib.sha256(b'secret-two').hexdigest()}\n")
    async with world(settings={"api_keys_file": file}) as w:
        for path in ("/v1/models", "/metrics", "/docs", "/v1/nothing", "//health", "/health/../v1/models"):
            r = await w.client.get(f"http://{w.proxy.address}{path}")
            error(r, 401, code="invalid_api_key")
            assert r.headers["www-authenticate"] == "Bearer"
        for open_path in ("/", "/health", "/ready"):
            assert (await w.client.get(open_path)).status_code == 200
        for wrong in ("secret-one", "Bearer secret-on", "Bearer", "Basic secret-one", "Bearer secret-one x"):
            error(await w.client.get("/v1/models", headers={"Authorization": wrong}), 401)
        for key in ("secret-one", "secret-two"):
            r = await w.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert r.status_code == 200


async def test_a_key_may_be_for_some_models_only(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("all-of-them\nonly-demo models=demo,other\nnone-of-them models=other\n")
    async with world(settings={"api_keys_file": file}) as w:
        w.head.show(
            Route("cat", RouteState.AVAILABLE), Route("demo:x", RouteState.STARTING, adapter="x", reason="loading")
        )

        def by(key: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {key}"}

        async def listed(key: str) -> set[str]:
            return {m["id"] for m in (await w.client.get("/v1/models", headers=by(key))).json()["data"]}

        await eventually(lambda: w.proxy.routes.table and "cat" in w.proxy.routes.table.routes)
        assert await listed("all-of-them") == {"demo", "cat", "demo:x"}
        assert await listed("only-demo") == {"demo", "demo:x"}
        assert await listed("none-of-them") == set()
        assert (await w.client.post("/v1/chat/completions", json=CHAT, headers=by("only-demo"))).status_code == 200
        bodies = {
            "/v1/chat/completions": CHAT,
            "/v1/chat/demo": {"messages": CHAT["messages"]},
            "/v1/completions": {"model": "demo", "prompt": "x"},
            "/v1/embeddings": {"model": "demo", "input": "x"},
            "/tokenize": {"model": "demo", "prompt": "x"},
        }
        for path, body in bodies.items():
            told = error(
                await w.client.post(path, json=body, headers=by("none-of-them")), 404, "model", "model_not_found"
            )
            assert "There is none yet" in told, "what others may call is not named"
        assert (await w.client.get("/v1/models/demo", headers=by("none-of-them"))).status_code == 404
        error(
            await w.client.post("/v1/chat/cat", content="x", headers=by("only-demo")), 404, "model", "model_not_found"
        )


async def test_who_may_be_refused_to_start(tmp_path: Path):
    async def start(**settings: Any) -> None:
        async with serving(
            ProxySettings(**{"http_port": 0, "head_address": "127.0.0.1:1", "state_dir": STATE} | settings)
        ):
            pass

    with pytest.raises(UserError, match="--api_keys_file"):
        await start(http_host="0.0.0.0")
    await start(http_host="0.0.0.0", allow_insecure=True)
    with pytest.raises(UserError, match="Cannot read"):
        await start(api_keys_file=tmp_path / "none")
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(UserError, match="no key"):
        await start(api_keys_file=tmp_path / "empty")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--http_port"):
            await start(http_port=taken.getsockname()[1])


async def metric(w: World, name: str) -> float:
    for line in (await w.client.get("/metrics")).text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


async def test_metrics():
    async with world() as w:
        for _ in range(3):
            await w.client.post("/v1/chat/completions", json=CHAT)
        await w.client.post("/v1/chat/completions", json=CHAT | {"n": 0})
        w.replicas[0].reject = Failure("overloaded", "Full.", retry_after_s=7.0)
        r = await w.client.post("/v1/chat/completions", json=CHAT)
        assert "Full." in error(r, 429)
        assert r.headers["retry-after"] == "7"
        await w.clean()
        model = 'model_name="demo"'
        assert await metric(w, f'vllm:request_success_total{{finished_reason="stop",{model}}}') == 3
        assert await metric(w, f"vllm:generation_tokens_total{{{model}}}") == 24
        assert await metric(w, f"vllm:prompt_tokens_total{{{model}}}") == 15
        assert await metric(w, f"vllm:time_to_first_token_seconds_count{{{model}}}") == 3
        assert await metric(w, f"vllm:inter_token_latency_seconds_count{{{model}}}") == 21
        assert await metric(w, f"vllm:e2e_request_latency_seconds_count{{{model}}}") == 3
        assert await metric(w, f'headrace_requests_failed_total{{kind="overloaded",{model}}}') == 1
        assert await metric(w, "headrace_requests_in_flight") == 0
        path = 'path="/v1/chat/completions"'
        assert await metric(w, f'headrace_http_responses_total{{{path},status="200"}}') == 3
        assert await metric(w, f'headrace_http_responses_total{{{path},status="400"}}') == 1


async def test_connection_reset_while_sending_the_body():
    async with world() as w:
        _, writer = await raw_request(
            w.proxy.address,
            "POST /v1/chat/demo HTTP/1.1\nHost: localhost\nContent-Length: 100\nContent-Type: text/plain",
            b"x",
        )
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert (await w.client.get("/health")).status_code == 200
        assert not w.replicas[0].submits
