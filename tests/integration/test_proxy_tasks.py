"""Embeddings, scores, ranks and tokens through a proxy and a real replica process."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import openai
import pytest
from integration.proxy_fixtures import Replica, eventually, world
from integration.served_fixtures import client_of, served

from headrace.core import simulated
from headrace.core.streams import Failure, Result, Task
from headrace.core.types import Endpoint, Route, RouteState
from headrace.proxy.generation import WINDOW


def vector(text: str, length: int = 64) -> list[float]:
    return simulated.vector(simulated.encode(text), length)


def close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


async def test_embeddings(tmp_path: Path):
    async with served(tmp_path) as w, client_of(w) as client:
        texts = ["the wheel", "the water 🌊", "of"]
        packed = await client.embeddings.create(model="demo", input=texts)  # base64 unless it is told otherwise
        plain = await client.embeddings.create(model="demo", input=texts, encoding_format="float", user="me")
        for r in (packed, plain):
            assert [d.index for d in r.data] == [0, 1, 2]
            assert all(close(d.embedding, vector(t)) for d, t in zip(r.data, texts, strict=True))
            assert r.usage.prompt_tokens == r.usage.total_tokens == sum(len(simulated.encode(t)) for t in texts)
        short = await client.embeddings.create(model="demo", input="the wheel", dimensions=5)
        assert close(short.data[0].embedding, vector("the wheel", 5))
        assert math.isclose(sum(x * x for x in short.data[0].embedding), 1.0, abs_tol=1e-5)
        ids = simulated.encode("the wheel")
        by_ids = await client.embeddings.create(model="demo", input=[ids, [1]])
        assert close(by_ids.data[0].embedding, vector("the wheel"))
        raw = await w.client.post("/v1/embeddings", json={"model": "demo", "input": ids})
        assert close(raw.json()["data"][0]["embedding"], vector("the wheel"))
        # More than are with replicas at a time, in order.
        many = [f"text {i}" for i in range(WINDOW * 3 + 1)]
        r = await client.embeddings.create(model="demo", input=many)
        assert all(close(d.embedding, vector(t)) for d, t in zip(r.data, many, strict=True))
        with pytest.raises(openai.BadRequestError, match="context is 8192 tokens"):
            await client.embeddings.create(model="demo", input=["a", "x" * 9000])


async def test_scores_and_ranks(tmp_path: Path):
    async with served(tmp_path) as w:
        post = w.client.post
        for path in ("/score", "/v1/score"):
            r = await post(path, json={"model": "demo", "text_1": "a b", "text_2": ["a", "a b", "c"]})
            assert [d["score"] for d in r.json()["data"]] == [0.5, 1.0, 0.0]
            assert [d["index"] for d in r.json()["data"]] == [0, 1, 2]
            assert r.json()["usage"]["prompt_tokens"] == 3 * 4 + 1 + 3 + 1
        r = await post("/score", json={"model": "demo", "text_1": ["a", "b"], "text_2": ["a", {"text": "a"}]})
        assert [d["score"] for d in r.json()["data"]] == [1.0, 0.0]
        documents = ["c", "b", {"text": "a b"}]
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            r = await post(path, json={"model": "demo", "query": "a b", "documents": documents})
            assert [(x["index"], x["relevance_score"]) for x in r.json()["results"]] == [(2, 1.0), (1, 0.5), (0, 0.0)]
            assert r.json()["results"][0]["document"] == {"text": "a b"}
        best = {"model": "demo", "query": "a b", "documents": documents, "top_n": 1, "return_documents": False}
        r = await post("/rerank", json=best)
        assert r.json()["results"] == [{"index": 2, "relevance_score": 1.0}]


async def test_tokens(tmp_path: Path):
    async with served(tmp_path) as w:
        for prefix in ("", "/v1"):
            r = await w.client.post(f"{prefix}/tokenize", json={"model": "demo", "prompt": "the wheel 🌊"})
            body = r.json()
            assert body["tokens"] == simulated.encode("the wheel 🌊")
            assert (body["count"], body["max_model_len"], body["token_strs"]) == (len(body["tokens"]), 8192, None)
            r = await w.client.post(f"{prefix}/detokenize", json={"model": "demo", "tokens": body["tokens"]})
            assert r.json() == {"prompt": "the wheel 🌊"}
        chat = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}
        r = await w.client.post("/tokenize", json=chat)
        assert simulated.decode(r.json()["tokens"]) == "".join(r.json()["token_strs"]) == "user: hi\nassistant:"
        r = await w.client.post("/tokenize", json=chat | {"add_generation_prompt": False})
        assert simulated.decode(r.json()["tokens"]) == "user: hi\n"
        r = await w.client.post("/detokenize", json={"model": "demo", "tokens": [10**6]})
        assert r.status_code == 400
        assert "0 to" in r.json()["error"]["message"]


async def test_a_model_does_what_it_was_deployed_for(tmp_path: Path):
    async with served(tmp_path, task="embed") as w, client_of(w) as client:
        assert (await client.embeddings.create(model="demo", input="a")).data
        refused: list[tuple[str, dict[str, Any], str]] = [
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "generate text"),
            ("/v1/completions", {"prompt": "x"}, "generate text"),
            ("/v1/chat/demo", {"prompt": "x"}, "generate text"),
            ("/rerank", {"query": "x", "documents": ["y"]}, "score pairs"),
        ]
        for path, body, what in refused:
            r = await w.client.post(path, json={"model": "demo"} | body)
            assert r.status_code == 400, path
            assert r.json()["error"]["param"] == "model"
            assert f"cannot {what}" in r.json()["error"]["message"]
            assert "it makes embeddings" in r.json()["error"]["message"]


async def test_an_answer_of_too_many_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where how long the model's own vectors are is known only when they come: 64 numbers each."""
    monkeypatch.setattr("headrace.proxy.results.MAX_NUMBERS", 150)
    async with served(tmp_path) as w:
        body = {"model": "demo", "input": ["a", "b"]}
        assert (await w.client.post("/v1/embeddings", json=body)).status_code == 200
        r = await w.client.post("/v1/embeddings", json=body | {"input": ["a", "b", "c"]})
        assert (r.status_code, r.json()["error"]["param"]) == (400, "input"), r.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input[1]"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": ["a"] * 2048, "dimensions": 2049}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "truncate": True}, "truncate"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/score", {"text_1": "a", "text_2": [{"image": "x"}]}, "text_2[0]"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": []}, "tokens"),
    ],
)
async def test_bad_fields(path: str, body: dict[str, Any], param: str):
    async with world() as w:
        r = await w.client.post(path, json={"model": "demo"} | body)
        assert (r.status_code, r.json()["error"]["param"]) == (400, param)
        assert not w.replicas[0].submits


EMBED = {"model": "demo", "input": ["a", "b"]}


async def test_tried_elsewhere_when_a_replica_dies():
    async with world(2, hold=True) as w:
        asked = asyncio.create_task(w.client.post("/v1/embeddings", json=EMBED))
        first = await eventually(lambda: next((r for r in w.replicas if len(r.live) == 2), None))
        other = w.replicas[1 - w.replicas.index(first)]
        other.result = Result(0, values=[1.0])
        other.hold = False
        await first.die()
        assert [d["embedding"] for d in (await asked).json()["data"]] == [[1.0], [1.0]]
        assert [s.task for s in other.submits] == [Task.EMBED] * 2
        await w.clean()


async def test_a_failure_of_one_is_the_requests(tmp_path: Path):
    async with world(reject=Failure("invalid_request", "Too long.", "input")) as w:
        r = await w.client.post("/v1/embeddings", json=EMBED)
        assert (r.status_code, r.json()["error"]["message"]) == (400, "Too long.")
        await w.clean()


async def test_a_model_on_demand():
    async with world(0) as w:
        w.head.state("demo", RouteState.AVAILABLE)
        await eventually(lambda: w.proxy.routes.table and "demo" in w.proxy.routes.table.routes)
        asked = asyncio.create_task(w.client.post("/v1/embeddings", json=EMBED))
        await eventually(lambda: w.head.ensured == ["demo"])
        replica = await Replica("demo-1-9", result=Result(0, values=[0.5])).start()
        try:
            w.head.show(Route("demo", RouteState.READY, "", (Endpoint(replica.endpoint.replica_id, replica.address),)))
            assert [d["embedding"] for d in (await asked).json()["data"]] == [[0.5], [0.5]]
        finally:
            await replica.die()


async def test_docs_show_all_of_it():
    async with world() as w:
        doc = (await w.client.get("/openapi.json")).json()
        page = (await w.client.get("/docs")).text
        for path, name in (
            ("/v1/embeddings", "EmbeddingRequest"),
            ("/v1/score", "ScoreRequest"),
            ("/v1/rerank", "RerankRequest"),
            ("/tokenize", "TokenizeRequest"),
            ("/detokenize", "DetokenizeRequest"),
        ):
            content = doc["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert content["schema"]["$ref"].endswith(name)
            assert doc["components"]["schemas"][name]["properties"]
            assert f"<code>{path}</code>" in page
        chat = doc["components"]["schemas"]["ChatRequest"]["properties"]
        assert {"tools", "tool_choice", "response_format", "structured_outputs", "chat_template_kwargs"} <= set(chat)
        assert "Tool" in doc["components"]["schemas"]
