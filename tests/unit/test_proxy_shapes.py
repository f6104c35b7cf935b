"""Events put together from parts are the same as those made whole."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.streams import Parsed, TokenLogprob, ToolCall
from headrace.proxy.chat_shape import ChatShape
from headrace.proxy.completion_shape import CompletionShape, Offsets, prompt_offsets
from headrace.proxy.extras import Echo, PromptLogprobs
from headrace.proxy.generation import Usage
from headrace.proxy.shapes import Choice, quote


def parsed(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return json.loads(event[6:])


@given(st.text(), st.integers(0, 3), st.booleans(), st.sampled_from(["demo", 'a"content":b', "ü:1"]))
def test_chat_delta(text, index, include_usage, model):
    shape = ChatShape("chatcmpl-1", model, 7, 4, include_usage)
    expected = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": model,
        "choices": [{"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}],
    } | ({"usage": None} if include_usage else {})
    assert parsed(shape.head(index) + quote(text).encode("utf-8", "surrogatepass") + shape.tail) == expected


@given(st.text(), st.integers(0, 3), st.booleans())
def test_completion_delta(text, index, include_usage):
    shape = CompletionShape("cmpl-1", "demo", 7, 4, include_usage)
    expected = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 7,
        "model": "demo",
        "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": None}],
    } | ({"usage": None} if include_usage else {})
    assert parsed(shape.head(index) + quote(text).encode("utf-8", "surrogatepass") + shape.tail) == expected


def test_half_characters_and_infinities_in_logprobs():
    half = TokenLogprob(1, "é".encode()[:1], float("-inf"), ())
    for shape in (ChatShape("x", "m", 1, 1, logprobs=True), CompletionShape("x", "m", 1, 1, logprobs=True)):
        event = shape.with_logprobs(0, "", [half])
        assert b"Infinity" not in event
        parsed(event)


def test_usage_event_has_no_choices():
    for shape in (ChatShape("x", "m", 1, 1, True), CompletionShape("x", "m", 1, 1, True)):
        event = parsed(shape.usage(Usage(2, 3, 1)))
        assert event["choices"] == []
        assert event["usage"] == {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        }


@given(st.text(max_size=12), st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_offsets_are_where_the_characters_of_tokens_begin(text, lengths):
    data, tokens, at = text.encode(), [], 0
    while at < len(data):
        n = lengths[len(tokens) % len(lengths)]
        tokens.append(TokenLogprob(0, data[at : at + n], -1.0))
        at += n
    begins = [len(data[: sum(len(t.token) for t in tokens[:i])].decode("utf-8", "ignore")) for i in range(len(tokens))]
    assert Offsets().of(tokens) == begins
    assert Offsets(7).of(tokens) == [7 + b for b in begins]
    assert prompt_offsets(text, tokens) == begins
    added = [TokenLogprob(0, b"<bos>", 0.0), *tokens]
    if not text.startswith("<"):
        assert prompt_offsets(text, added) == [0, *begins], "what the tokenizer added is not in the text"


def test_a_message_of_calls_and_reasoning():
    shape = ChatShape("x", "m", 1, 1)
    choice = Choice(reason="tool_calls")
    pieces = (
        Parsed(0, "think"),
        Parsed(0, "ing", (ToolCall(0, "call_1", "f", "{"),)),
        Parsed(0, "", (ToolCall(0, arguments="}"), ToolCall(1, "call_2", "g", "{}"))),
    )
    deltas = [parsed(shape.extra(0, p))["choices"][0]["delta"] for p in pieces]
    assert deltas[0] == {"reasoning": "think", "reasoning_content": "think"}
    assert deltas[1]["tool_calls"] == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    ]
    assert deltas[2]["tool_calls"][0] == {"index": 0, "function": {"arguments": "}"}}
    for p in pieces:
        choice.add(p)
    message = shape.whole([choice], Usage(1, 1, 0))["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning"] == "thinking"
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]] == [
        ("call_1", "f", "{}"),
        ("call_2", "g", "{}"),
    ]
    choice.text = "and words"
    assert shape.whole([choice], Usage(1, 1, 0))["choices"][0]["message"]["content"] == "and words"
    plain = shape.whole([Choice("", "stop")], Usage(1, 1, 0))["choices"][0]["message"]
    assert plain == {"role": "assistant", "content": "", "refusal": None}


def test_an_echo_with_logprobs_waits_for_them():
    token = TokenLogprob(1, b"hi", -1.0)
    shape = CompletionShape("x", "m", 1, 1, logprobs=True, echo=True)
    assert shape.extra(0, Echo("hi")) == b""
    choice = parsed(shape.extra(0, PromptLogprobs((token,))))["choices"][0]
    assert (choice["text"], choice["logprobs"]["token_logprobs"]) == ("hi", [None])
    after = parsed(shape.with_logprobs(0, "hi", [token]))["choices"][0]
    assert after["logprobs"]["text_offset"] == [2]
