"""Everything OpenAI's client can ask of real vLLM: a proxy, a replica process, and the client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from integration.proxy_fixtures import World, world
from integration.replica_fixtures import a_spec, running
from integration.served_fixtures import client_of
from model_fixtures import SmallEncoder, SmallModel

from headrace.core.phase import Phase
from headrace.core.types import Endpoint, Route, RouteState

pytest.importorskip("vllm", reason="runs in an environment of its own: make test-vllm")

pytestmark = pytest.mark.timeout(300)

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
ASK = [{"role": "user", "content": "Turn the wheel"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"enum": ["mill", "river"]},
                "days": {"type": "integer", "maximum": 9, "minimum": 0},
            },
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}


@asynccontextmanager
async def served(folder: Path, source: Path, **model: Any) -> AsyncIterator[World]:
    options = {"dtype": "float32", "kv_cache_memory_bytes": 2**28}
    spec = a_spec(engine="vllm", source=str(source), cpus=2, options=options, **model)
    async with running(spec, folder) as replica, world(0) as w:
        status = await replica.status_when(lambda s: s.phase in (Phase.READY, Phase.FAILED), 180)
        assert status.phase is Phase.READY, status.reason
        w.head.show(Route("demo", RouteState.READY, "", (Endpoint(spec.replica_id, replica.address),), 0, 1024))
        await w.reachable(spec.replica_id)
        yield w
        await w.clean()


async def test_a_model_that_generates(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    """One process for all of it: starting takes longer than the tests."""
    source = small_models["llama"]["hf"]
    async with served(tmp_path, source, chat_template=TEMPLATE) as w, client_of(w) as client:
        await structured_answers(client)
        await demanded_calls(client)
        await logprobs_and_echo(client, w)
        await tokens_there_and_back(w.client)
        await what_is_refused(client)


async def structured_answers(client: openai.AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "kind": {"enum": ["x", "yy"]}},
        "required": ["a", "kind"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    answer = await client.chat.completions.create(model="demo", messages=ASK, max_tokens=200, response_format=form)
    content = json.loads(answer.choices[0].message.content or "")
    assert set(content) == {"a", "kind"}
    assert content["kind"] in ("x", "yy")
    for guide, accepts in (
        ({"regex": "(yes|no)!"}, {"yes!", "no!"}),
        ({"choice": ["wheel", "mill"]}, {"wheel", "mill"}),
        ({"grammar": 'root ::= "water" | "stone"'}, {"water", "stone"}),
    ):
        body = {"structured_outputs": guide}
        answer = await client.chat.completions.create(model="demo", messages=ASK, max_tokens=20, extra_body=body)
        assert answer.choices[0].message.content in accepts


async def demanded_calls(client: openai.AsyncOpenAI) -> None:
    how: Any = {"model": "demo", "messages": ASK, "tools": [WEATHER], "max_tokens": 300}
    answer = await client.chat.completions.create(**how, tool_choice="required", parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["place"] in ("mill", "river")
    named: Any = {"type": "function", "function": {"name": "weather"}}
    arguments, name = "", ""
    async for chunk in await client.chat.completions.create(**how, tool_choice=named, stream=True):
        for piece in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            name += (piece.function and piece.function.name) or ""
            arguments += (piece.function and piece.function.arguments) or ""
    assert name == "weather"
    assert 0 <= json.loads(arguments)["days"] <= 9


async def logprobs_and_echo(client: openai.AsyncOpenAI, w: World) -> None:
    answer = await client.chat.completions.create(
        model="demo", messages=ASK, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    entries = (answer.choices[0].logprobs and answer.choices[0].logprobs.content) or []
    assert [len(e.top_logprobs) for e in entries] == [2, 2, 2]
    done = await client.completions.create(
        model="demo", prompt="Hello", max_tokens=2, temperature=0, echo=True, logprobs=1
    )
    assert done.choices[0].text.startswith("Hello")
    numbers = done.choices[0].logprobs
    assert numbers is not None
    assert numbers.token_logprobs is not None
    assert numbers.token_logprobs[0] is None
    assert all(x is not None and x <= 0 for x in numbers.token_logprobs[1:])
    many = await client.completions.create(model="demo", prompt=[[5, 6, 7], [8, 9]], n=2, max_tokens=2)  # type: ignore[list-item]
    assert len(many.choices) == 4


async def tokens_there_and_back(client: httpx.AsyncClient) -> None:
    r = await client.post("/tokenize", json={"model": "demo", "prompt": "Hello water", "add_special_tokens": False})
    tokens = r.json()["tokens"]
    r = await client.post("/detokenize", json={"model": "demo", "tokens": tokens})
    assert r.json()["prompt"] == "Hello water"


async def what_is_refused(client: openai.AsyncOpenAI) -> None:
    for broken in ({"regex": "(yes|"}, {"json": {"type": 5}}, {"grammar": "root ::= b"}):
        body = {"structured_outputs": broken}
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="demo", messages=ASK, max_tokens=5, extra_body=body)
    with pytest.raises(openai.BadRequestError, match="tool_parser"):
        await client.chat.completions.create(model="demo", messages=ASK, tools=[WEATHER], tool_choice="auto")  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="generates text"):
        await client.embeddings.create(model="demo", input="water")
    answer = await client.chat.completions.create(model="demo", messages=ASK, max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3, "the engine is well"


async def test_embeddings_equal_transformers(small_encoders: dict[str, SmallEncoder], tmp_path: Path) -> None:
    encoder = small_encoders["embed"]
    cases = json.loads(encoder["reference"].read_text())
    async with served(tmp_path, encoder["hf"], task="embed") as w, client_of(w) as client:
        answer = await client.embeddings.create(model="demo", input=[c["text"] for c in cases])
        for given, case in zip(answer.data, cases, strict=True):
            assert given.embedding == pytest.approx(case["mean"], abs=1e-3)
        with pytest.raises(openai.BadRequestError, match="makes embeddings"):
            await client.completions.create(model="demo", prompt="x")


async def test_scores_equal_transformers(small_encoders: dict[str, SmallEncoder], tmp_path: Path) -> None:
    encoder = small_encoders["score"]
    cases = json.loads(encoder["reference"].read_text())
    async with served(tmp_path, encoder["hf"], task="score") as w:
        for query in {c["text"] for c in cases}:
            mine = [c for c in cases if c["text"] == query]
            body = {"model": "demo", "query": query, "documents": [c["document"] for c in mine]}
            r = await w.client.post("/v1/rerank", json=body)
            assert r.status_code == 200, r.text
            found = {x["index"]: x["relevance_score"] for x in r.json()["results"]}
            assert [found[i] for i in range(len(mine))] == pytest.approx([c["score"] for c in mine], abs=1e-3)
