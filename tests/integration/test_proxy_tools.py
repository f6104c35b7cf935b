"""Tools, structured output, reasoning and echo through a proxy and a real replica process, with OpenAI's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from integration.served_fixtures import client_of, served

from headrace.core import simulated

HELLO: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "pages": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}},
    },
    "required": ["title", "pages", "tags"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "book", "strict": True, "schema": BOOK}}


async def streamed(client: openai.AsyncOpenAI, **how: Any) -> tuple[str, str, dict[int, list[str]], str | None]:
    """Text, reasoning, (id, name, arguments) by index, and the finish reason, put together from the chunks."""
    text, reasoning, reason = "", "", None
    calls: dict[int, list[str]] = {}
    async for chunk in await client.chat.completions.create(model="demo", messages=HELLO, stream=True, **how):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        extra = choice.delta.model_extra or {}
        assert extra.get("reasoning") == extra.get("reasoning_content")
        reasoning += extra.get("reasoning") or ""
        for c in choice.delta.tool_calls or ():
            if c.id:
                assert c.function
                assert c.type == "function"
                assert c.index not in calls, "id and name come once"
                calls[c.index] = [c.id, c.function.name or "", ""]
            assert c.function
            calls[c.index][2] += c.function.arguments or ""
        reason = choice.finish_reason or reason
    return text, reasoning, calls, reason


async def test_tools_of_the_models_choice(tmp_path: Path):
    async with served(tmp_path, tool_parser="simulated") as w, client_of(w) as client:
        ask = client.chat.completions.create
        r = await ask(model="demo", messages=HELLO, tools=[WEATHER, NOW])
        choice = r.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls = choice.message.tool_calls
        assert calls
        assert [c.function.name for c in calls if c.type == "function"] == ["weather", "now"]
        jsonschema.validate(json.loads(calls[0].function.arguments), CITY)  # type: ignore[union-attr]
        assert len({c.id for c in calls}) == 2
        assert all(c.id.startswith("call_") for c in calls)

        text, _, pieces, reason = await streamed(client, tools=[WEATHER, NOW], tool_choice="auto")
        assert (text, reason) == ("", "tool_calls")
        assert [(c[1], c[2]) for c in pieces.values()] == [(c.function.name, c.function.arguments) for c in calls]  # type: ignore[union-attr]

        one = await ask(model="demo", messages=HELLO, tools=[WEATHER, NOW], parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls or ()) == 1

        # The client answers the calls with what it was given, and gets words.
        answers: list[Any] = [{"role": "tool", "tool_call_id": c.id, "content": "rain"} for c in calls]
        said = choice.message.model_dump()
        r = await ask(model="demo", messages=[*HELLO, said, *answers], tools=[WEATHER, NOW])
        assert r.choices[0].message.content
        assert not r.choices[0].message.tool_calls
        assert r.choices[0].finish_reason == "stop"

        none = await ask(model="demo", messages=HELLO, tools=[WEATHER], tool_choice="none")
        assert none.choices[0].message.content == (await ask(model="demo", messages=HELLO)).choices[0].message.content
        plain = await w.client.post("/v1/chat/demo", content="hi", headers={"Content-Type": "text/plain"})
        assert plain.text == simulated_answer("hi")


def simulated_answer(text: str) -> str:
    ids = simulated.encode(simulated.chat_prompt([{"role": "user", "content": text}]))
    return simulated.decode(simulated.answer(ids, None, simulated.natural_length(simulated.digest(ids, None))))


async def test_tools_that_are_demanded_need_no_parser(tmp_path: Path):
    async with served(tmp_path) as w, client_of(w) as client:
        ask = client.chat.completions.create
        r = await ask(model="demo", messages=HELLO, tools=[WEATHER], tool_choice=NAMED)
        [call] = r.choices[0].message.tool_calls or ()
        assert call.type == "function"
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), CITY)
        assert (r.choices[0].finish_reason, r.choices[0].message.content) == ("stop", None)

        for seed in range(4):
            how: dict[str, Any] = {"tools": [WEATHER, NOW], "tool_choice": "required", "seed": seed}
            r = await ask(model="demo", messages=HELLO, **how)
            whole = [c.function for c in r.choices[0].message.tool_calls or () if c.type == "function"]
            assert r.choices[0].finish_reason == "tool_calls"
            assert whole
            text, _, pieces, reason = await streamed(client, **how)
            assert (text, reason) == ("", "tool_calls")
            assert [(c[1], c[2]) for c in pieces.values()] == [(f.name, f.arguments) for f in whole]
            assert all(json.loads(c[2]) is not None for c in pieces.values())
            one = await ask(model="demo", messages=HELLO, parallel_tool_calls=False, **how)
            assert len(one.choices[0].message.tool_calls or ()) == 1
        cut = await ask(model="demo", messages=HELLO, tools=[WEATHER], tool_choice="required", max_tokens=3)
        assert cut.choices[0].finish_reason == "length"

        with pytest.raises(openai.BadRequestError, match="--tool_parser") as e:
            await ask(model="demo", messages=HELLO, tools=[WEATHER])
        assert e.value.param == "tool_choice"


async def test_the_form_of_an_answer(tmp_path: Path):
    async with served(tmp_path) as w, client_of(w) as client:
        ask = client.chat.completions.create
        for seed in range(3):
            r = await ask(model="demo", messages=HELLO, response_format=FORMAT, seed=seed)
            jsonschema.validate(json.loads(r.choices[0].message.content or ""), BOOK)
        text, *_, reason = await streamed(client, response_format=FORMAT)
        jsonschema.validate(json.loads(text), BOOK)
        assert reason == "stop"
        r = await ask(model="demo", messages=HELLO, response_format={"type": "json_object"})
        assert isinstance(json.loads(r.choices[0].message.content or ""), dict)
        extra: dict[str, Any] = {"structured_outputs": {"choice": ["yes", "no"]}}
        r = await ask(model="demo", messages=HELLO, extra_body=extra)
        assert r.choices[0].message.content in ("yes", "no")
        c = await client.completions.create(
            model="demo", prompt="a", extra_body={"structured_outputs": {"json": BOOK}}, max_tokens=900
        )
        jsonschema.validate(json.loads(c.choices[0].text), BOOK)
        for given, param in (
            ({"regex": "a+"}, "structured_outputs"),
            ({"grammar": "root ::= x"}, "structured_outputs"),
        ):
            with pytest.raises(openai.BadRequestError, match="cannot hold an answer") as e:
                await ask(model="demo", messages=HELLO, extra_body={"structured_outputs": given})
            assert e.value.param == param
        hard: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "a"}}}
        with pytest.raises(openai.BadRequestError, match="'pattern' is not understood"):
            await ask(model="demo", messages=HELLO, response_format=hard)
        with pytest.raises(openai.BadRequestError, match="cannot be combined"):
            await ask(model="demo", messages=HELLO, response_format=FORMAT, tools=[WEATHER])


async def test_reasoning(tmp_path: Path):
    parsers = {"tool_parser": "simulated", "reasoning_parser": "simulated"}
    async with served(tmp_path, **parsers) as w, client_of(w) as client:
        ask = client.chat.completions.create
        r = await ask(model="demo", messages=HELLO)
        message = r.choices[0].message
        extra = message.model_extra or {}
        assert extra["reasoning"]
        assert extra["reasoning"] == extra["reasoning_content"]
        assert message.content
        assert "think>" not in extra["reasoning"] + message.content
        assert await streamed(client) == (message.content, extra["reasoning"], {}, "stop")
        again: list[Any] = [*HELLO, message.model_dump(), *HELLO]
        assert (await ask(model="demo", messages=again)).choices[0].message.content

        for how in ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "required"}):
            text, reasoning, pieces, reason = await streamed(client, **how)
            assert (text, reason) == ("", "tool_calls")
            assert reasoning
            jsonschema.validate(json.loads(pieces[0][2]), CITY)
        text, reasoning, *_ = await streamed(client, response_format=FORMAT)
        jsonschema.validate(json.loads(text), BOOK)
        assert reasoning
        plain = await w.client.post("/v1/chat/demo", content="hi", headers={"Content-Type": "text/plain"})
        assert plain.text
        assert "think>" not in plain.text
        logged = await ask(model="demo", messages=HELLO, logprobs=True)
        assert logged.choices[0].logprobs
        assert logged.usage
        assert len(logged.choices[0].logprobs.content or ()) == logged.usage.completion_tokens


async def test_echo(tmp_path: Path):
    async with served(tmp_path, options={"text": " one 🚰 of"}) as w, client_of(w) as client:
        ask = client.completions.create
        ids = simulated.encode(" the wheel 🌊")
        for prompt, text in ((" the wheel 🌊", " the wheel 🌊"), (ids, " the wheel 🌊")):
            r = await ask(model="demo", prompt=prompt, echo=True, max_tokens=6, n=2)
            assert [c.text for c in r.choices] == [text + " one 🚰"] * 2
            stream = await ask(model="demo", prompt=prompt, echo=True, max_tokens=6, stream=True)
            assert "".join([c.choices[0].text async for c in stream]) == text + " one 🚰"
        many = await ask(model="demo", prompt=["a", "b"], echo=True, max_tokens=1)
        assert [c.text for c in many.choices] == ["a one", "b one"]
        nothing = await ask(model="demo", prompt="a", echo=True, max_tokens=0)
        assert (nothing.choices[0].text, nothing.choices[0].finish_reason) == ("a", "length")


async def test_echo_with_logprobs(tmp_path: Path):
    async with served(tmp_path, options={"text": " one 🚰 of"}) as w, client_of(w) as client:
        ask = client.completions.create
        prompt = " the 🌊 wheel"
        r = await ask(model="demo", prompt=prompt, echo=True, max_tokens=7, logprobs=1)
        lp = r.choices[0].logprobs
        assert lp
        assert lp.tokens
        assert lp.text_offset
        assert lp.token_logprobs
        assert lp.top_logprobs
        whole = r.choices[0].text
        count = len(simulated.encode(prompt))
        assert len(lp.tokens) == len(lp.text_offset) == len(lp.token_logprobs) == len(lp.top_logprobs) == count + 7
        assert lp.token_logprobs[0] is None
        assert lp.top_logprobs[0] is None
        assert all(x is not None for x in lp.token_logprobs[1:])
        for token, offset in zip(lp.tokens, lp.text_offset, strict=True):
            if "\ufffd" not in token:
                assert whole[offset:].startswith(token)
        assert lp.text_offset[count] == len(prompt)
        chunks = [
            c async for c in await ask(model="demo", prompt=prompt, echo=True, max_tokens=7, logprobs=1, stream=True)
        ]
        assert "".join(c.choices[0].text for c in chunks) == whole
        offsets = [o for c in chunks if (x := c.choices[0].logprobs) for o in x.text_offset or []]
        assert offsets == lp.text_offset
        only = await ask(model="demo", prompt=prompt, echo=True, max_tokens=0, logprobs=0)
        assert only.choices[0].text == prompt
        assert only.choices[0].logprobs
        assert len(only.choices[0].logprobs.tokens or ()) == count
        assert only.usage
        assert only.usage.completion_tokens == 0
        r = await w.client.post("/v1/completions", json={"model": "demo", "prompt": prompt, "prompt_logprobs": 2})
        given = r.json()["choices"][0]["prompt_logprobs"]
        assert r.json()["choices"][0]["text"] == " one 🚰 of one 🚰 of one 🚰"[: len(r.json()["choices"][0]["text"])]
        assert given[0] is None
        assert len(given) == count
        first = given[1][str(simulated.encode(prompt)[1])]
        assert first == {"logprob": -0.25, "rank": 1, "decoded_token": " "}
