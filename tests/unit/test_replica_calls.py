"""Tool calls out of JSON text: the same however it is cut, and what json.loads says."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.streams import ToolCall
from headrace.replica.calls import CallList, NamedCall
from headrace.replica.engine import Delta

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.text(min_size=1, max_size=6)
calls = st.lists(st.tuples(names, st.dictionaries(st.text(max_size=4), json_values, max_size=3)), max_size=3)


def cut(text: str, lengths: list[int]) -> list[str]:
    """`text` in pieces of these lengths, over and over."""
    pieces, at = [], 0
    for n in itertools.cycle(lengths):
        if at >= len(text):
            return pieces
        pieces.append(text[at : at + n])
        at += n
    return [text]


def ids() -> Any:
    counter = itertools.count()
    return lambda: f"call_{next(counter)}"


def read(parser: CallList | NamedCall, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    """The text and the calls, put together as a client does it."""
    text = ""
    out: dict[int, ToolCall] = {}
    for delta in [*(parser.push(p) for p in pieces), parser.finish()]:
        assert isinstance(delta, Delta)
        text += delta.text
        for c in delta.tool_calls:
            if c.index not in out:
                assert c.id
                assert c.name
                out[c.index] = c
            else:
                assert (c.id, c.name) == ("", ""), "they come once"
                old = out[c.index]
                out[c.index] = ToolCall(c.index, old.id, old.name, old.arguments + c.arguments)
    return text, [out[i] for i in sorted(out)]


lengths = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@given(calls, lengths, st.sampled_from([None, 2]), st.booleans(), st.booleans())
def test_a_list_of_calls(expected, lengths, indent, ascii_only, name_last):
    listed = [{"parameters": p, "name": n} if name_last else {"name": n, "parameters": p} for n, p in expected]
    whole = json.dumps(listed, indent=indent, ensure_ascii=ascii_only)
    text, seen = read(CallList(ids()), cut(whole, lengths))
    assert text == ""
    assert [(c.name, json.loads(c.arguments)) for c in seen] == expected
    assert [c.index for c in seen] == list(range(len(expected)))
    assert (text, seen) == read(CallList(ids()), [whole])


@given(json_values, lengths)
def test_arguments_may_be_any_value(value, lengths):
    whole = json.dumps([{"name": "f", "parameters": value}])
    _, seen = read(CallList(ids()), cut(whole, lengths))
    assert json.loads(seen[0].arguments) == value


@given(calls.filter(bool), lengths, st.integers(0, 40))
def test_a_list_that_breaks_off(expected, lengths, kept):
    whole = json.dumps([{"name": n, "parameters": p} for n, p in expected])[: 2 + kept]
    text, seen = read(CallList(ids()), cut(whole, lengths))
    assert text == ""
    for call, (name, parameters) in zip(seen, expected, strict=False):
        assert call.name == name
        assert json.dumps(parameters).startswith(call.arguments)


@given(st.text(alphabet='[]{}",:\\ name1', max_size=30), lengths)
def test_any_text_reads_the_same_however_it_is_cut(whole, lengths):
    assert read_loosely(cut(whole, lengths)) == read_loosely([whole])


def read_loosely(pieces: list[str]) -> tuple[str, str]:
    parser = CallList(lambda: "id")
    deltas = [*(parser.push(p) for p in pieces), parser.finish()]
    said = {c.index: "" for d in deltas for c in d.tool_calls}
    for c in (c for d in deltas for c in d.tool_calls):
        said[c.index] += c.name + c.arguments
    return "".join(d.text for d in deltas), json.dumps(said)


def test_what_is_no_list_is_text():
    assert read(CallList(ids()), ["I can", "not."])[0] == "I cannot."
    text, seen = read(CallList(ids()), ['[{"name": "f", "parameters": {}}] ', "and more"])
    assert (text, len(seen)) == ("and more", 1)


def test_the_name_comes_before_the_arguments_are_whole():
    parser = CallList(ids())
    assert parser.push('[{"name": "f", "para') == Delta(tool_calls=(ToolCall(0, "call_0", "f"),))
    assert parser.push('meters": {"a') == Delta(tool_calls=(ToolCall(0, arguments='{"a'),))
    assert parser.push('": 1}}') == Delta(tool_calls=(ToolCall(0, arguments='": 1}'),))


@given(st.text(min_size=1, max_size=20), lengths)
def test_a_named_call(arguments, lengths):
    _, seen = read(NamedCall("f", ids()), cut(arguments, lengths))
    assert seen == [ToolCall(0, "call_0", "f", arguments)]
    assert read(NamedCall("f", ids()), [])[1] == [ToolCall(0, "call_0", "f")]
