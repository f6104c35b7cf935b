"""Requests from bytes: whatever comes, a request or one sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.streams import ChatPrompt, Guide, Sampling, Submit
from headrace.errors import HeadraceError, InvalidRequest
from headrace.proxy.charsets import CODECS
from headrace.proxy.openai import ChatRequest, CompletionRequest, ModelChatRequest
from headrace.proxy.parse import decode_text, parse_json, plain_request, query_fields
from headrace.proxy.tasks import DetokenizeRequest, EmbeddingRequest, RerankRequest, ScoreRequest, TokenizeRequest
from headrace.proxy.ticket import Asked
from headrace.rpc.convert_streams import submit_from_pb, submit_to_pb

TASKS = (EmbeddingRequest, ScoreRequest, RerankRequest, TokenizeRequest, DetokenizeRequest)
MODELS = (ChatRequest, CompletionRequest, ModelChatRequest, *TASKS)
GOOD = {
    EmbeddingRequest: {"model": "m", "input": "x"},
    ScoreRequest: {"model": "m", "text_1": "x", "text_2": "y"},
    RerankRequest: {"model": "m", "query": "x", "documents": ["y"]},
    TokenizeRequest: {"model": "m", "prompt": "x"},
    DetokenizeRequest: {"model": "m", "tokens": [1]},
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
function = {"name": "f", "parameters": {"type": "object"}}
near = st.sampled_from(
    [
        [{"type": "function", "function": function}],
        {"type": "function", "function": {"name": "f"}},
        "required",
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        {"json": {"type": "object"}},
        {"choice": ["a"]},
        [
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}],
            }
        ],
        [{"role": "tool", "tool_call_id": "1", "content": ""}],
    ]
)
"""Values that are right in some field."""


@given(st.sampled_from(MODELS), st.dictionaries(names, values | near, max_size=4))
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
    for s in request.submits(Asked("id")):
        assert s.request_id == "id"
        least = 0 if s.echo or s.prompt_logprobs is not None else 1
        assert s.max_tokens is None or least <= s.max_tokens < 2**31
        assert 0 <= (s.sampling.seed or 0) < 2**64
        assert all(s.stop)
        exact = replace(s, sampling=Sampling())  # its numbers become shorter on the way
        assert submit_from_pb(submit_to_pb(exact).submit) == exact


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
        assert request.submits(Asked("id"))[0].prompt == ChatPrompt(b'[{"role":"user","content":"hello"}]')


def test_query_values():
    got = query_fields(
        [("temperature", "0.5"), ("max_tokens", "3"), ("ignore_eos", "true"), ("stop", "1"), ("user", "7")]
    )
    assert got == {"temperature": 0.5, "max_tokens": 3, "ignore_eos": True, "stop": ["1"], "user": "7"}


def test_bounds_are_inclusive_where_they_say_so():
    low = {"temperature": 0, "top_p": 1, "presence_penalty": -2, "repetition_penalty": 10, "min_p": 0, "top_k": 0}
    request = parse_json(json.dumps(GOOD[ChatRequest] | low).encode(), ChatRequest)
    s = request.submits(Asked("id"))[0].sampling
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


def test_only_known_charsets_are_taken():
    for charset in ("punycode", "idna", "undefined", "utf-7", "unicode_escape", "raw-unicode-escape", "rot13", "mbcs"):
        with pytest.raises(HeadraceError, match=f"{charset} is not taken; there are utf-8") as e:
            decode_text(b"hello", charset)
        assert e.value.status == 415
    assert decode_text("grüße".encode("cp1252"), "Windows-1252") == "grüße"
    assert decode_text("こんにちは".encode("shift_jis"), "Shift_JIS") == "こんにちは"
    assert decode_text("中文".encode("gb18030"), "GB2312") == "中文"


@pytest.mark.parametrize("codec", sorted(set(CODECS.values())))
def test_no_charset_takes_long(codec: str):
    whole = 2 * 1024 * 1024
    for piece in (b"a", b"\x81\x30\x81\x30", b"\xb0\xa1", b"z\xe3\x81\x82", bytes(range(256))):
        data, begun = piece * (whole // len(piece)), time.thread_time()
        with suppress(UnicodeDecodeError):
            data.decode(codec)
        assert time.thread_time() - begun < 0.25  # some milliseconds


@given(st.sampled_from(MODELS), st.dictionaries(names, st.none(), min_size=1, max_size=6))
def test_what_is_null_is_absent(model, nulls):
    fields = {k: None for k in nulls if k not in GOOD[model]}
    without = parse_json(json.dumps(GOOD[model]).encode(), model)
    assert parse_json(json.dumps(GOOD[model] | fields).encode(), model) == without


def test_nulls_within():
    message = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": None}], "tool_calls": None}
    tools = [{"type": "function", "function": function | {"strict": None, "x": None}, "y": None}]
    choice = {"type": "function", "function": {"name": "f", "x": None}}
    asked = {
        "stream": True,
        "stream_options": {"include_usage": None},
        "logit_bias": {"5": None},
        "metadata": {"a": None},
    }
    form = {"response_format": {"type": "text", "json_schema": None}}
    assert chat(messages=[message], **asked, **form) == chat(stream=True)
    assert chat(tools=tools, tool_choice=choice) == chat(
        tools=[{"type": "function", "function": function}], tool_choice={"type": "function", "function": {"name": "f"}}
    )


def test_what_changes_nothing_is_taken():
    harmless = {"top_k": -1, "top_logprobs": 0, "verbosity": "medium", "skip_special_tokens": True, "bad_words": []}
    assert chat(**harmless) == chat(top_k=0)
    assert len(chat(stop=[f"s{i}" for i in range(32)]).stop) == 32
    for wrong in ({"skip_special_tokens": False}, {"top_k": -2}, {"top_logprobs": 1}, {"stop": ["a"] * 33}):
        with pytest.raises(InvalidRequest):
            chat(**wrong)


def test_reasoning_effort_goes_to_the_template():
    assert json.loads(chat(reasoning_effort="low").template_args_json) == {"reasoning_effort": "low"}
    both = chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False})
    assert json.loads(both.template_args_json) == {"enable_thinking": False, "reasoning_effort": "low"}
    with pytest.raises(InvalidRequest, match="differs from chat_template_kwargs"):
        chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})


@given(st.sampled_from(MODELS), st.dictionaries(names, values | near, max_size=4))
def test_errors_are_in_words_not_in_code(model, fields):
    _, error = attempt(parse_json, json.dumps(GOOD[model] | fields, allow_nan=True).encode(), model)
    for code in ("^[", "(?", "{1,", "pattern", "None", "True", "False", "Error", "should", "tuple"):
        assert error is None or code not in error.message.partition(", not ")[0].replace("parameter", "")


def test_a_query_is_part_of_the_request():
    given = query_fields([("max_tokens", "5"), ("temperature", "0.5")])
    request = parse_json(b'{"prompt": "x", "top_k": 3}', ModelChatRequest, given)
    assert (request.max_tokens, request.temperature, request.top_k) == (5, 0.5, 3)
    with pytest.raises(InvalidRequest, match="'max_tokens' is in the query and in the body"):
        parse_json(b'{"prompt": "x", "max_tokens": 5}', ModelChatRequest, given)


def test_numbers_of_a_query_are_those_of_json():
    for text in ("1_000", "٣", " 5", "0x10", "nan", "inf", "1e400000", "9" * 5000, "1." + "3" * 5000):
        with pytest.raises(InvalidRequest, match="must be a number"):
            plain_request("x", [("temperature", text)])


def chat(**fields: Any) -> Submit:
    return parse_json(json.dumps(GOOD[ChatRequest] | fields).encode(), ChatRequest).submits(Asked("id"))[0]


def test_tools_as_they_travel():
    tools = [{"type": "function", "function": function | {"description": "d", "strict": True}}]
    plain = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    s = chat(tools=tools)
    assert (json.loads(s.tools_json), s.tool_choice, s.one_tool_call) == (plain, "auto", False)
    s = chat(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert (s.tool_choice, s.one_tool_call) == ("required", True)
    s = chat(tools=tools, tool_choice={"type": "function", "function": {"name": "f"}})
    assert (s.tool_choice, s.tool_name) == ("function", "f")
    for nothing in ({"tools": tools, "tool_choice": "none"}, {"tools": []}, {"parallel_tool_calls": False}):
        assert chat(**nothing) == chat()


def test_forms_as_they_travel():
    schema = {"type": "object", "properties": {"ü": {}}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for fields, kind, value in (
        ({"response_format": named}, "json_schema", schema),
        ({"structured_outputs": {"json": schema}}, "json_schema", schema),
        ({"structured_outputs": {"json": json.dumps(schema)}}, "json_schema", schema),
        ({"structured_outputs": {"choice": ["a", "b"], "regex": None}}, "choices", ["a", "b"]),
    ):
        guide = chat(**fields).guide
        assert guide
        assert (guide.kind, json.loads(guide.value)) == (kind, value)
    for fields, guide in (
        ({"response_format": {"type": "json_object"}}, Guide("json_object")),
        ({"structured_outputs": {"json_object": True}}, Guide("json_object")),
        ({"structured_outputs": {"regex": "a+"}}, Guide("regex", "a+")),
        ({"structured_outputs": {"grammar": "root ::= x"}}, Guide("grammar", "root ::= x")),
        ({"response_format": {"type": "text"}}, None),
    ):
        assert chat(**fields).guide == guide


def test_deep_schemas_are_refused():
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="nest at most 64") as e:
        chat(structured_outputs={"json": deep})
    assert e.value.param == "structured_outputs.json"


def test_prompt_logprobs_of_completions():
    def of(**fields: Any) -> Submit:
        body = json.dumps(GOOD[CompletionRequest] | fields).encode()
        return parse_json(body, CompletionRequest).submits(Asked("id"))[0]

    assert of(logprobs=3).prompt_logprobs is None
    assert of(logprobs=3, echo=True).prompt_logprobs == 3
    assert of(logprobs=3, echo=True, prompt_logprobs=5).prompt_logprobs == 5
    assert of(prompt_logprobs=0).prompt_logprobs == 0
    assert of(echo=True).echo
