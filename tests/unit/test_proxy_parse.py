"""Requests from bytes: whatever comes, a request or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.types import ChatPrompt, Sampling
from headrace.errors import HeadraceError, InvalidRequest
from headrace.proxy.openai import ChatRequest, CompletionRequest, ModelChatRequest
from headrace.proxy.parse import decode_text, parse_json, plain_request, query_fields

MODELS = (ChatRequest, CompletionRequest, ModelChatRequest)
GOOD = {
    ChatRequest: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    CompletionRequest: {"model": "m", "prompt": "x"},
    ModelChatRequest: {"prompt": "x"},
}


def attempt(call: Callable[..., Any], *args: Any) -> tuple[Any, HeadraceError | None]:
    """What it returns, or the error that a client would see; any other exception fails the test."""
    try:
        return call(*args), None
    except HeadraceError as e:
        return None, e


names = st.sampled_from([*sorted({name for m in MODELS for name in m.model_fields}), "nonsense"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just("x" * 5000),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=5),
    max_leaves=10,
)


@given(st.sampled_from(MODELS), st.dictionaries(names, values, max_size=4))
def test_any_fields_give_a_request_or_a_sentence(model, fields):
    body = json.dumps(GOOD[model] | fields, allow_nan=True).encode()
    request, error = attempt(parse_json, body, model)
    if error:
        assert isinstance(error, InvalidRequest)
        assert error.message
        assert "\n" not in error.message
        assert len(error.message) < 400
        assert "pydantic" not in error.message
        return
    for s in request.submits("id"):
        assert s.request_id == "id"
        assert s.max_tokens is None or 1 <= s.max_tokens < 2**31
        assert 0 <= (s.sampling.seed or 0) < 2**64
        assert all(s.stop)


@given(st.sampled_from(MODELS), st.binary(max_size=200))
def test_any_bytes_give_an_error(model, body):
    _, error = attempt(parse_json, body, model)
    assert isinstance(error, InvalidRequest)
    assert "\n" not in error.message


@given(st.dictionaries(names, st.text(max_size=8), max_size=3))
def test_any_query_gives_a_request_or_a_sentence(fields):
    request, error = attempt(plain_request, "hello", list(fields.items()))
    if error:
        assert error.param
    else:
        assert request.submits("id")[0].prompt == ChatPrompt(b'[{"role": "user", "content": "hello"}]')


def test_query_values():
    got = query_fields(
        [("temperature", "0.5"), ("max_tokens", "3"), ("ignore_eos", "true"), ("stop", "1"), ("user", "7")]
    )
    assert got == {"temperature": 0.5, "max_tokens": 3, "ignore_eos": True, "stop": ["1"], "user": "7"}


def test_bounds_are_inclusive_where_they_say_so():
    low = {"temperature": 0, "top_p": 1, "presence_penalty": -2, "repetition_penalty": 10, "min_p": 0, "top_k": 0}
    request = parse_json(json.dumps(GOOD[ChatRequest] | low).encode(), ChatRequest)
    s = request.submits("id")[0].sampling
    assert s == Sampling(temperature=0, top_p=1, presence_penalty=-2, repetition_penalty=10, min_p=0, top_k=0)


def test_the_nearest_field_is_named():
    for wrong, right in (("max_token", "max_tokens"), ("Temperature", "temperature"), ("message", "messages")):
        with pytest.raises(InvalidRequest, match=f"Did you mean '{right}'"):
            parse_json(json.dumps(GOOD[ChatRequest] | {wrong: 1}).encode(), ChatRequest)


def test_two_limits():
    both = GOOD[ChatRequest] | {"max_tokens": 5, "max_completion_tokens": 5}
    assert parse_json(json.dumps(both).encode(), ChatRequest).limit() == 5
    with pytest.raises(InvalidRequest, match="max_tokens"):
        parse_json(json.dumps(both | {"max_tokens": 6}).encode(), ChatRequest)


@given(st.text(min_size=1), st.sampled_from(["utf-8", "utf-16", "latin-1", "ascii", "nonsense", "hex", "zip", ""]))
def test_text_bodies(text, charset):
    try:
        body = text.encode(charset)
    except (UnicodeEncodeError, LookupError):
        body = text.encode("utf-8", "surrogatepass")
    decoded, error = attempt(decode_text, body, charset)
    assert error.status in (400, 415) if error else decoded.strip()
