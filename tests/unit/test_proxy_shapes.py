"""Events put together from parts are the same as those made whole."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.types import TokenLogprob
from headrace.proxy.generation import Usage
from headrace.proxy.shapes import ChatShape, CompletionShape, quote


def parsed(event: bytes) -> dict[str, object]:
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
