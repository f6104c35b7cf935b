"""Requests that are refused, with the status and the sentence."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from integration.proxy_fixtures import answer, eventually, raw_request, world
from integration.proxy_requests import CHAT, TEXT, error

from headrace.core.types import Route, RouteState

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": ["a"] * 33}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": "x" * 300}, "stop"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [TOOL | {"x": 1}]}, "tools[0].x"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": True}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "b" * 70_000}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"x": "y" * 20_000}}, "chat_template_kwargs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"reasoning_effort": "some"}, "reasoning_effort"),
        ({"temprature": 1}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
    ],
)
async def test_bad_chat_fields(change: dict[str, Any], param: str):
    async with world() as w:
        message = error(await w.client.post("/v1/chat/completions", json=CHAT | change), 400, param)
        assert message.endswith((".", "?"))
        assert "\n" not in message
        assert not w.replicas[0].submits


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [], "tool_choice": "none", "functions": None, "response_format": {"type": "text"}},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
        {"stop": [], "logit_bias": {}, "n": None, "temperature": None, "stream": None, "modalities": ["text"]},
    ],
)
async def test_harmless_chat_fields(change: dict[str, Any]):
    async with world() as w:
        r = await w.client.post("/v1/chat/completions", json=CHAT | change)
        assert r.json()["choices"][0]["message"]["content"] == answer(8)


async def test_bad_completion_fields():
    async with world() as w:
        for change, param in (
            ({"prompt": []}, "prompt"),
            ({"prompt": ["a", ""]}, "prompt[1]"),
            ({"prompt": [1, "a"]}, "prompt"),
            ({"prompt": [[1], [-1]]}, "prompt[1]"),
            ({"prompt": ["a"] * 129}, "prompt"),
            ({"prompt": ["a"] * 64, "n": 3}, "prompt"),
            ({"logprobs": 21}, "logprobs"),
            ({"echo": "yes"}, "echo"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"prompt_logprobs": 21}, "prompt_logprobs"),
            ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
            ({"suffix": "x"}, "suffix"),
            ({"best_of": 2}, "best_of"),
        ):
            error(await w.client.post("/v1/completions", json={"model": "demo", "prompt": "a"} | change), 400, param)
        error(await w.client.post("/v1/completions", json={"model": "demo"}), 400, "prompt", "missing_parameter")
        r = await w.client.post("/v1/completions", json={"model": "demo", "prompt": "a", "n": 2, "best_of": 2})
        assert r.status_code == 200


async def test_bad_bodies():
    async with world() as w:
        headers = {"Content-Type": "application/json"}

        async def post(body: bytes, **more: str) -> httpx.Response:
            return await w.client.post("/v1/chat/completions", content=body, headers=headers | more)

        for body in (b"", b"{", b"[]", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}'):
            error(await post(body), 400)
        error(await post(b"{}", **{"Content-Type": "text/plain"}), 415)
        error(await post(b"{}", **{"Content-Type": "application/json; charset=utf-16"}), 415)
        hint = error(await post(json.dumps(CHAT | {"temprature": 1}).encode()), 400, "temprature")
        assert "'temperature'" in hint


async def test_unknown_urls_and_methods():
    async with world() as w:
        error(await w.client.get("/v2/nothing"), 404, code="unknown_url")
        r = await w.client.get("/v1/chat/completions")
        error(r, 405)
        assert r.headers["allow"] == "POST"
        error(await w.client.post("/v1/models"), 405)
        error(await w.client.post("/v1/chat/completions", json=CHAT | {"model": "x"}), 404, "model")


async def test_too_large():
    async with world(settings={"max_body_bytes": 1000}) as w:
        error(await w.client.post("/v1/chat/completions", json=CHAT | {"user": "x" * 1000}), 413)

        async def pieces() -> Any:
            for _ in range(20):
                yield b"x" * 100

        error(await w.client.post("/v1/chat/demo", content=pieces(), headers=TEXT), 413)
        r = await w.client.post("/v1/chat/demo", content=b"x" * 1000, headers=TEXT)
        assert r.status_code == 200


async def test_head_limits():
    async with world() as w:
        reader, writer = await raw_request(
            w.proxy.address, "GET /health HTTP/1.1\nHost: localhost\nX-Big: " + "x" * 70_000
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        many = "\n".join(f"X-{i}: 1" for i in range(300))
        reader, writer = await raw_request(w.proxy.address, f"GET /health HTTP/1.1\nHost: localhost\n{many}")
        assert b'"error"' in await reader.read()
        writer.close()
        reader, writer = await raw_request(w.proxy.address, "NONSENSE")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_what_fits_no_context_never_leaves_the_proxy() -> None:
    async with world() as w:
        [replica] = w.replicas
        route = Route("demo", RouteState.READY, "", (replica.endpoint,), 1_700_000_000, 64, prompt_bytes=8192)
        w.head.show(route)
        await eventually(lambda: w.proxy.routes.table.routes["demo"].prompt_bytes)
        long = "words " * 3000
        said = [{"role": "user", "content": long}]
        for path, body in (
            ("/v1/chat/completions", {"messages": said}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "words " * 1100}] * 2}),
            ("/v1/completions", {"prompt": long}),
            ("/v1/completions", {"prompt": ["a", long]}),
            ("/v1/completions", {"prompt": list(range(65))}),
            ("/v1/embeddings", {"input": ["a", long]}),
            ("/score", {"text_1": "a", "text_2": ["b", long]}),
            ("/rerank", {"query": "a", "documents": [long]}),
            ("/tokenize", {"prompt": long}),
            ("/tokenize", {"messages": said}),
            ("/detokenize", {"tokens": list(range(65))}),
        ):
            r = await w.client.post(path, json={"model": "demo", **body})
            assert (r.status_code, r.json()["error"]["code"]) == (400, "context_length_exceeded"), (path, r.text)
        r = await w.client.post("/v1/chat/demo", content=long, headers={"content-type": "text/plain"})
        assert (r.status_code, r.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert not replica.submits
        r = await w.client.post("/v1/completions", json={"model": "demo", "prompt": "a" * 8192, "max_tokens": 2})
        assert r.status_code == 200


async def test_a_spoiled_call_in_a_history_is_data() -> None:
    async with world() as w:
        for arguments in ('{"x":', "null", "[1]", '"s"', "", None, {"a": 1}):
            call = {"id": "c", "type": "function", "function": {"name": "what is <this>", "arguments": arguments}}
            messages = [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "no"},
            ]
            r = await w.client.post(
                "/v1/chat/completions", json={"model": "demo", "messages": messages, "max_tokens": 2}
            )
            assert r.status_code == 200, r.text


@pytest.mark.parametrize(
    "name", ["bos_token", "eos_token", "raise_exception", "range", "messages", "tools", "strftime_now"]
)
async def test_what_a_template_is_not_told_by_a_request(name: str) -> None:
    async with world() as w:
        body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {name: "x"}}
        r = await w.client.post("/v1/chat/completions", json=body)
        assert r.status_code == 400
        assert r.json()["error"]["param"] == f"chat_template_kwargs.{name}"
        body["chat_template_kwargs"] = {"enable_thinking": False, "add_generation_prompt": True}
        assert (await w.client.post("/v1/chat/completions", json=body | {"max_tokens": 2})).status_code == 200
