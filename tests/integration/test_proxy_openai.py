"""The official client against the proxy, and the shapes it does not check."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from integration.proxy_fixtures import World, answer, world

from headrace.core.streams import Failure

HELLO = [{"role": "user", "content": "hello"}]


def async_client(w: World) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="none", max_retries=0)


async def test_chat_whole():
    async with world() as w, async_client(w) as client:
        r = await client.chat.completions.create(model="demo", messages=HELLO, max_tokens=5)
        assert r.choices[0].message.content == answer(5)
        assert r.choices[0].message.role == "assistant"
        assert r.choices[0].finish_reason == "length"
        assert r.object == "chat.completion"
        assert r.id.startswith("chatcmpl-")
        assert r.model == "demo"
        assert r.usage
        assert (r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.total_tokens) == (5, 5, 10)
        assert r.usage.prompt_tokens_details
        assert r.usage.prompt_tokens_details.cached_tokens == 3
        await w.clean()


async def test_chat_stream():
    async with world() as w, async_client(w) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [c async for c in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer(8)
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
        assert chunks[-1].choices == []
        assert chunks[-1].usage
        assert chunks[-1].usage.total_tokens == 13
        assert len({c.id for c in chunks}) == 1
        assert all(c.usage is None for c in chunks[:-1])
        await w.clean()


def test_sync_client():
    async def main() -> None:
        async with world() as w:

            def call() -> tuple[str, str]:
                with openai.OpenAI(base_url=f"{w.url}/v1", api_key="none", max_retries=0) as client:
                    whole = client.chat.completions.create(model="demo", messages=HELLO)
                    stream = client.chat.completions.create(model="demo", messages=HELLO, stream=True)
                    parts = "".join(c.choices[0].delta.content or "" for c in stream)
                    assert [m.id for m in client.models.list()] == ["demo"]
                    assert client.models.retrieve("demo").id == "demo"
                    with pytest.raises(openai.NotFoundError, match="demo"):
                        client.models.retrieve("nothing/of:it")
                    return whole.choices[0].message.content or "", parts

            whole, parts = await asyncio.to_thread(call)
            assert whole == parts == answer(8)

    asyncio.run(main())


async def test_completion_prompts_and_n():
    async with world() as w, async_client(w) as client:
        r = await client.completions.create(model="demo", prompt=["a", "b"], n=2, max_tokens=3, seed=7)
        assert [c.index for c in r.choices] == [0, 1, 2, 3]
        assert {c.text for c in r.choices} == {answer(3)}
        assert r.usage
        assert (r.usage.prompt_tokens, r.usage.completion_tokens) == (10, 12)
        sent = w.replicas[0].submits
        assert [s.prompt.text for s in sent] == ["a", "a", "b", "b"]
        assert [s.sampling.seed for s in sent] == [7, 8, 7, 8]
        tokens = await client.completions.create(model="demo", prompt=[1, 2, 3])
        assert tokens.choices[0].finish_reason == "stop"
        assert w.replicas[0].submits[-1].prompt.ids == [1, 2, 3]
        assert w.replicas[0].submits[-1].max_tokens == 16  # OpenAI's default for completions
        many = await client.completions.create(model="demo", prompt=[[1], [2, 3]], max_tokens=1)
        assert len(many.choices) == 2
        await w.clean()


async def test_choices_stay_on_one_replica():
    async with world(3) as w, async_client(w) as client:
        for _ in range(5):
            await client.chat.completions.create(model="demo", messages=HELLO, n=4, max_tokens=2)
        assert all(len(r.submits) % 4 == 0 for r in w.replicas)


async def test_completion_stream_of_two():
    async with world() as w, async_client(w) as client:
        texts = ["", ""]
        stream = await client.completions.create(model="demo", prompt="a", n=2, max_tokens=4, stream=True)
        async for c in stream:
            texts[c.choices[0].index] += c.choices[0].text
        assert texts == [answer(4)] * 2


async def test_chat_logprobs():
    async with world() as w, async_client(w) as client:
        r = await client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
        )
        content = r.choices[0].logprobs and r.choices[0].logprobs.content
        assert content
        assert [t.token for t in content] == ["w0 ", "w1 ", "w2 "]
        assert content[0].bytes == list(b"w0 ")
        assert [a.token for a in content[0].top_logprobs] == ["a0", "a1"]
        stream = await client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=3, logprobs=True, stream=True
        )
        seen = [t.token async for c in stream if (lp := c.choices[0].logprobs) for t in lp.content or []]
        assert seen == ["w0 ", "w1 ", "w2 "]
        assert w.replicas[0].submits[-1].sampling.logprobs == 0


async def test_completion_logprobs():
    async with world() as w, async_client(w) as client:
        r = await client.completions.create(model="demo", prompt="a", max_tokens=3, logprobs=2)
        lp = r.choices[0].logprobs
        assert lp
        assert lp.tokens == ["w0 ", "w1 ", "w2 "]
        assert lp.token_logprobs == [-0.5] * 3
        assert lp.text_offset == [0, 3, 6]
        assert lp.top_logprobs
        assert lp.top_logprobs[0] == {"a0": -2.0, "a1": -3.0, "w0 ": -0.5}
        stream = await client.completions.create(model="demo", prompt="a", max_tokens=3, logprobs=0, stream=True)
        offsets = [o async for c in stream if (x := c.choices[0].logprobs) for o in x.text_offset or []]
        assert offsets == [0, 3, 6]


async def test_text_survives_quoting():
    texts = ['"quoted"', "back\\slash", "line\nbreak\r\t", "\u2028é漢字🙂\u0000\u001f", "data: [DONE]\n\n", ""]
    async with world(texts=texts, tokens=12) as w, async_client(w) as client:
        stream = await client.chat.completions.create(model="demo", messages=HELLO, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "".join(texts) * 2
        whole = await client.chat.completions.create(model="demo", messages=HELLO)
        assert whole.choices[0].message.content == "".join(texts) * 2


async def test_all_parameters_reach_the_replica():
    async with world() as w, async_client(w) as client:
        await client.chat.completions.create(
            model="demo",
            messages=[
                {"role": "developer", "content": "be brief"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    "name": "x",
                },
            ],
            temperature=0.5,
            top_p=0.25,
            seed=-1,
            max_completion_tokens=2,
            stop=["x", "y"],
            presence_penalty=1,
            frequency_penalty=-2,
            logit_bias={"5": -100},
            user="me",
            store=True,
            metadata={"a": "b"},
            extra_body={"top_k": 3, "min_p": 0.5, "repetition_penalty": 1.5, "ignore_eos": True, "min_tokens": 1},
        )
        s = w.replicas[0].submits[0]
        assert json.loads(s.prompt.messages_json) == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a\nb", "name": "x"},
        ]
        assert s.max_tokens == 2
        assert s.stop == ("x", "y")
        p = s.sampling
        assert (p.temperature, p.top_p, p.top_k, p.min_p, p.seed) == (0.5, 0.25, 3, 0.5, 2**64 - 1)
        assert (p.presence_penalty, p.frequency_penalty, p.repetition_penalty) == (1, -2, 1.5)
        assert p.logit_bias == {5: -100.0}
        assert (p.ignore_eos, p.min_tokens, p.logprobs) == (True, 1, None)


async def test_unset_parameters_stay_unset():
    async with world() as w, async_client(w) as client:
        await client.chat.completions.create(model="demo", messages=HELLO)
        s = w.replicas[0].submits[0]
        assert s.sampling == type(s.sampling)()
        assert s.max_tokens is None


async def test_error_after_headers_is_an_api_error():
    async with world(die_at=3, step_s=0.005) as w, async_client(w) as client:
        seen: list[str] = []

        async def read() -> None:
            async for c in await client.chat.completions.create(
                model="demo", messages=HELLO, stream=True, response_format={"type": "json_object"}
            ):
                seen.append(c.choices[0].delta.content or "")

        with pytest.raises(openai.APIError, match="went away") as caught:
            await read()
        assert "".join(seen) == answer(3)
        assert caught.value.code == "stream_cannot_continue"
        await w.clean()


async def test_replica_refuses_a_request():
    reject = Failure("context_exceeded", "The prompt has 9000 tokens; the model takes 2048.", "messages")
    async with world(reject=reject) as w, async_client(w) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="9000") as caught:
                await client.chat.completions.create(model="demo", messages=HELLO, stream=stream)
            assert caught.value.code == "context_length_exceeded"
            assert caught.value.param == "messages"
        assert len(w.replicas[0].submits) == 2  # not tried again
        await w.clean()
