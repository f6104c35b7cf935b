"""Tool calls and reasoning are taken out of an answer the same way, however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.replica.engine import Parsing
from headrace.replica.engines.openvino_parsers import Parsers

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "db.find")]
Seen = tuple[str, str, list[tuple[str, dict[str, Any]]]]


def parse(pieces: list[str], tool: str = "", reasoning: str = "", tools: list[Any] = TOOLS) -> Seen:
    parser = Parsers(tool, reasoning).new(Parsing(tools))
    assert parser is not None
    deltas = [*(parser.push(piece, ()) for piece in pieces), parser.finish()]
    calls = [c for d in deltas for c in d.tool_calls]
    assert [c.index for c in calls] == list(range(len(calls)))
    assert len({c.id for c in calls}) == len(calls)
    found = [(c.name, json.loads(c.arguments)) for c in calls]
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), found


def every_cut(text: str, **how: Any) -> Seen:
    """The one result of all ways to cut it in two or three, and letter by letter."""
    whole = parse([text], **how)
    assert parse(list(text), **how) == whole
    for i in range(len(text) + 1):
        for j in range(i, len(text) + 1):
            assert parse([text[:i], text[i:j], text[j:]], **how) == whole, (i, j)
    return whole


F1 = '{"name": "f", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (F1, "", [("f", {"a": 1})]),
        (f"<|python_tag|>{F1}", "", [("f", {"a": 1})]),
        (f'{F1}; {{"name": "g"}}', "", [("f", {"a": 1}), ("g", {})]),
        (f"Hi {F1} bye", "Hi bye", [("f", {"a": 1})]),
        ('{"name": "f", "arguments": {"a": "} {\\"", "é": {"b": [1]}}}', "", [("f", {"a": '} {"', "é": {"b": [1]}})]),
        ("a < b, <|py", "a < b, <|py", []),
        ('{"name": "Bob"}', '{"name": "Bob"}', []),
        ('{"name": "f", "par', '{"name": "f", "par', []),
        ('if (a) { b({"x": 1}) }', 'if (a) { b({"x": 1}) }', []),
        ('{"name": "f", "parameters": 5}', '{"name": "f", "parameters": 5}', []),
        ("", "", []),
    ],
)
def test_llama3_json(text: str, rest: str, calls: list[tuple[str, Any]]) -> None:
    assert every_cut(text, tool="llama3_json") == (rest, "", calls)


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        ("[f(a=1)]", "", [("f", {"a": 1})]),
        ('[f(a="x, y]", b=-2.5), g()]', "", [("f", {"a": "x, y]", "b": -2.5}), ("g", {})]),
        ("<|python_tag|>[f(a=[1, {'b': True}], c=null)]", "", [("f", {"a": [1, {"b": True}], "c": None})]),
        ("Well: [db.find(q='x')]", "Well: ", [("db.find", {"q": "x"})]),
        ("see [1] and [f(1)] and [h(a=1)]", "see [1] and [f(1)] and [h(a=1)]", []),
        ("[f(a=open('x'))]", "[f(a=open('x'))]", []),
        ("[f(a={1})]", "[f(a={1})]", []),
        ("[f(a=1)", "[f(a=1)", []),
        ("[]", "[]", []),
    ],
)
def test_llama3_pythonic(text: str, rest: str, calls: list[tuple[str, Any]]) -> None:
    assert every_cut(text, tool="llama3_pythonic") == (rest, "", calls)


@pytest.mark.parametrize(
    ("name", "text", "rest", "thought"),
    [
        ("deepseek_r1", "<think>abc</think>def", "def", "abc"),
        ("deepseek_r1", "abc</think>def", "def", "abc"),
        ("deepseek_r1", "abc", "", "abc"),
        ("deepseek_r1", "abc</thin", "", "abc</thin"),
        ("deepseek_r1", "a<b</think>c</think><think>d", "c</think><think>d", "a<b"),
        ("phi4", "<think>abc</think>def", "def", "abc"),
        ("phi4", "abc</think>def", "abc</think>def", ""),
        ("phi4", "x<think>abc</think>def", "xdef", "abc"),
        ("phi4", "<thin", "<thin", ""),
        ("phi4", "\n<think>abc", "", "abc"),
        ("phi4", "<think>\n</think>\n", "\n", "\n"),
        ("phi4", "  a", "  a", ""),
    ],
)
def test_reasoning(name: str, text: str, rest: str, thought: str) -> None:
    assert every_cut(text, reasoning=name) == (rest, thought, [])


def test_calls_in_the_reasoning_are_none() -> None:
    seen = every_cut(f"x{F1}</think>{F1}", tool="llama3_json", reasoning="deepseek_r1")
    assert seen == ("", f"x{F1}", [("f", {"a": 1})])


@given(st.lists(st.sampled_from(["<think>", "</think>", "{", "}", F1, "<|python_tag|>", "<", "a", " ", "[f(a=1)]"])))
@pytest.mark.parametrize("tool", ["llama3_json", "llama3_pythonic"])
@pytest.mark.parametrize("reasoning", ["deepseek_r1", "phi4"])
def test_cutting_changes_nothing(tool: str, reasoning: str, parts: list[str]) -> None:
    text = "".join(parts)
    assert parse(list(text), tool, reasoning) == parse(parts, tool, reasoning) == parse([text], tool, reasoning)


def test_without_tools_there_are_no_calls() -> None:
    assert Parsers("llama3_json", "").new(Parsing()) is None
    assert Parsers("", "").new(Parsing(TOOLS)) is None
    assert parse([F1], "llama3_json", "phi4", tools=[]) == (F1, "", [])


def test_features_and_unknown_names() -> None:
    assert Parsers("", "").features == frozenset()
    assert Parsers("llama3_json", "phi4").features == {"tools", "tool_parser", "reasoning_parser"}
    with pytest.raises(UserError, match=r"no tool parser 'hermes': there are llama3_json, llama3_pythonic\."):
        Parsers("hermes", "")
    with pytest.raises(UserError, match=r"no reasoning parser 'qwen3': there are deepseek_r1, phi4\."):
        Parsers("", "qwen3")


def test_as_genai_reads_it() -> None:
    """Where genai's own parsers lose nothing, ours find the same."""
    genai = pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")
    for name, its, text in (
        ("llama3_json", genai.Llama3JsonToolParser(), F1),
        ("llama3_pythonic", genai.Llama3PythonicToolParser(), '[f(a="x", b="y z")]'),
    ):
        message: dict[str, Any] = {"content": text}
        its.parse(message)
        calls = [(c["name"], c.get("parameters", c.get("arguments"))) for c in message["tool_calls"]]
        assert parse([text], name)[2] == calls
    for name, its in (("deepseek_r1", genai.DeepSeekR1ReasoningParser), ("phi4", genai.Phi4ReasoningParser)):
        message = {"content": "</think>def" if name == "deepseek_r1" else "<think>abc</think>def"}
        its().parse(message)
        assert parse([message["content"]], reasoning=name)[1] == message["reasoning_content"]
