"""Guides, tools and readers in the front end, with the simulated model's tokenizer and parser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import simulated
from headrace.core.failover import can_resume
from headrace.core.instances import instance, numbers
from headrace.core.streams import (
    ChatPrompt,
    Frame,
    Guide,
    Resume,
    Sampling,
    Started,
    Submit,
    Task,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    ToolCall,
)
from headrace.core.types import Load, ModelInfo, ModelSpec
from headrace.errors import ContextExceeded, InvalidRequest
from headrace.replica.engine import Delta, Parsing
from headrace.replica.engines.simulated_parsing import CALL, THINK, SimulatedParser
from headrace.replica.frontend import FrontEnd, open_front_end
from headrace.replica.prepared import Prepared, PreparedEncoding, PreparedResult
from headrace.replica.reader import Reader
from headrace.replica.sampling import FEATURES
from headrace.replica.session import MAX_ENTRIES, Session
from headrace.replica.weights import Model

ALL = FEATURES | {"json_schema", "json_object", "choices", "tool_parser", "prompt_logprobs"}
ASK = ChatPrompt(b'[{"role": "user", "content": "hi"}]')
RECURSIVE = {
    "type": "object",
    "properties": {"inner": {"anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/leaf"}]}},
    "required": ["inner"],
    "$defs": {"leaf": {"type": "integer"}},
}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | ({"parameters": parameters} if parameters else {})}


WEATHER = tool("weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
TOOLS = json.dumps([WEATHER, tool("now"), tool("tree", RECURSIVE)]).encode()


def front_end(
    features: frozenset[str] = ALL,
    tasks: tuple[str, ...] = ("generate",),
    template: str = "",
    parser: SimulatedParser | None = None,
    seen: list[Parsing] | None = None,
) -> FrontEnd:
    info = ModelInfo("abacus", "1", 4096, simulated.VOCAB_SIZE, features, tasks)

    def new_parser(parsing: Parsing) -> SimulatedParser | None:
        if seen is not None:
            seen.append(parsing)
        return parser

    return open_front_end(
        ModelSpec("x", chat_template=template), Model(None), info, Sampling(), (simulated.EOS_ID,), new_parser
    )


def prepare(f: FrontEnd, submit: Submit) -> Prepared:
    p = f.prepare(1, submit)
    assert isinstance(p, Prepared)
    return p


def ask(**how: Any) -> Submit:
    return Submit(1, "r", how.pop("prompt", ASK), **how)


# --- guides ---


@pytest.mark.parametrize("kind", ["json_schema", "json_object", "regex", "grammar", "choices"])
def test_a_guide_needs_an_engine_that_has_it(kind):
    value = '["a"]' if kind == "choices" else '{"type": "object"}'
    submit = ask(guide=Guide(kind, value))
    assert prepare(front_end(ALL | {kind}), submit).request.guide == submit.guide
    with pytest.raises(InvalidRequest, match="'abacus', which cannot hold") as e:
        front_end(ALL - {kind}).prepare(1, submit)
    assert e.value.param == ("response_format" if kind.startswith("json") else "structured_outputs")


def test_a_named_function_is_guided_by_its_own_schema():
    p = prepare(front_end(), ask(tools_json=TOOLS, tool_choice="function", tool_name="weather"))
    assert p.request.guide
    assert json.loads(p.request.guide.value) == WEATHER["function"]["parameters"]
    assert p.reader
    delta = p.reader.push('{"city": "Oslo"}', [1])
    assert [(c.name, c.arguments) for c in delta.tool_calls] == [("weather", '{"city": "Oslo"}')]
    assert delta.tool_calls[0].id.startswith("call_")
    assert p.reader.reason("stop") == "stop"
    with pytest.raises(InvalidRequest, match="'wether'") as e:
        front_end().prepare(1, ask(tools_json=TOOLS, tool_choice="function", tool_name="wether"))
    assert e.value.param == "tool_choice"


@given(st.binary(min_size=16, max_size=16), st.booleans())
def test_a_demanded_call_is_a_list_of_calls(key, one):
    p = prepare(front_end(), ask(tools_json=TOOLS, tool_choice="required", one_tool_call=one))
    assert p.request.guide
    schema = json.loads(p.request.guide.value)
    jsonschema.Draft202012Validator.check_schema(schema)
    calls = instance(schema, numbers(key))
    assert 1 <= len(calls) <= (1 if one else 99)
    by_name = {t["function"]["name"]: t["function"].get("parameters", {}) for t in json.loads(TOOLS)}
    for call in calls:
        jsonschema.Draft202012Validator(by_name[call["name"]]).validate(call["parameters"])
    for wrong in ([], [{"name": "other", "parameters": {}}], [{"name": "weather", "parameters": {}}]):
        assert not jsonschema.Draft202012Validator(schema).is_valid(wrong)
    tree = [{"name": "tree", "parameters": {"inner": {"inner": 3}}}]
    assert jsonschema.Draft202012Validator(schema).is_valid(tree), "its schema still refers to itself"
    assert p.reader
    read = [c for d in (p.reader.push(json.dumps(calls), [1]), p.reader.finish()) for c in d.tool_calls]
    assert [c.name for c in read if c.name] == [c["name"] for c in calls]
    assert p.reader.reason("stop") == "tool_calls"
    assert p.reader.reason("length") == "length"


@pytest.mark.parametrize(
    ("features", "template", "how", "param", "words"),
    [
        (ALL - {"tool_parser"}, "", {}, "tool_choice", "--tool_parser"),
        (ALL - {"json_schema"}, "", {"tool_choice": "required"}, "tool_choice", "cannot demand"),
        (ALL, "{{ messages[0].content }}", {}, "tools", "--chat_template"),
        (ALL, "", {"guide": Guide("json_object")}, "response_format", "cannot be combined"),
    ],
)
def test_tools_that_cannot_be_used(features, template, how, param, words):
    with pytest.raises(InvalidRequest, match=words) as e:
        front_end(frozenset(features), template=template).prepare(1, ask(tools_json=TOOLS, **how))
    assert e.value.param == param


def test_the_template_gets_tools_only_where_they_may_be_called():
    seen: list[Parsing] = []
    f = front_end(seen=seen)
    plain = list(prepare(f, ask()).request.prompt_ids)
    assert list(prepare(f, ask(tools_json=TOOLS, tool_choice="none")).request.prompt_ids) == plain
    offered = prepare(f, ask(tools_json=TOOLS))
    assert simulated.decode(offered.request.prompt_ids).startswith("tools: ")
    assert [len(p.tools) for p in seen] == [0, 0, 3]
    prepare(f, ask(tools_json=TOOLS, tool_choice="required"))
    assert len(seen[-1].tools) == 0, "calls that are demanded are read by the front end"
    assert list(seen[-1].prompt_ids) == list(offered.request.prompt_ids)


def test_messages_with_calls_and_results():
    template = (
        "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.city }}{% endif %}"
        "{{ m.content }}|{% endfor %}{{ x }}"
    )
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    prompt = ChatPrompt(json.dumps(messages).encode())
    p = prepare(front_end(template=template), ask(prompt=prompt, template_args_json=b'{"x": "!"}'))
    assert simulated.decode(p.request.prompt_ids) == "Oslo|rain|!"


DEEP = ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900]


@pytest.mark.parametrize("spoiled", ['{"city":', "null", "[1]", '"s"', "", "{}", None, [1], *DEEP])
def test_a_spoiled_call_in_a_history_is_data(spoiled):
    items = "{{ c.function.arguments.items() | list }}"
    template = "{% for m in messages %}{% for c in m.tool_calls %}" + items + "{% endfor %}{% endfor %}"
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": spoiled}}
    prompt = ChatPrompt(json.dumps([{"role": "assistant", "content": None, "tool_calls": [call]}]).encode())
    assert simulated.decode(prepare(front_end(template=template), ask(prompt=prompt)).request.prompt_ids) == "[]"


# --- the simulated parser, and readers ---


def _said(parser: SimulatedParser | Reader, pieces: Sequence[str]) -> tuple[str, str, list[ToolCall]]:
    deltas: list[Delta] = [*(parser.push(p, ()) for p in pieces), parser.finish()]
    calls = [replace(c, id="") for d in deltas for c in d.tool_calls]
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), calls


PIECES = st.lists(st.sampled_from([*THINK, *CALL, "<", "think>", "a b", "</", '{"name": "f", "arguments": {"x": 1}}']))


@given(PIECES, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_the_parser_does_not_depend_on_how_the_text_is_cut(parts, lengths, reasoning, calls):
    whole = "".join(parts)
    cuts, at = [], 0
    while at < len(whole):
        n = lengths[len(cuts) % len(lengths)]
        cuts.append(whole[at : at + n])
        at += n
    seen = _said(SimulatedParser(reasoning, calls), cuts)
    assert seen == _said(SimulatedParser(reasoning, calls), [whole])
    if not reasoning and not calls:
        assert seen == (whole, "", [])


def test_reasoning_is_taken_out_before_demanded_calls_are_read():
    f = front_end(parser=SimulatedParser(True, False))
    p = prepare(f, ask(tools_json=TOOLS, tool_choice="required"))
    assert p.reader
    text, reasoning, calls = _said(p.reader, ["<think>let me", " see</think>", '[{"name": "now", "parameters": {}}]'])
    assert (text, reasoning) == ("", "let me see")
    assert [(c.name) for c in calls if c.name] == ["now"]


def test_one_call_only():
    two = "".join(f'{CALL[0]}{{"name": "{n}", "arguments": {{}}}}{CALL[1]}' for n in "fg")
    assert [c.name for c in _said(Reader(SimulatedParser(False, True), None), [two])[2]] == ["f", "g"]
    assert [c.name for c in _said(Reader(SimulatedParser(False, True), None, one_call=True), [two])[2]] == ["f"]


def test_a_resumed_answer_with_reasoning_goes_on_where_it_was():
    ids = simulated.encode("<think>one</think> the water turns")
    whole = "".join(simulated.decode([i]) for i in ids)
    f = front_end(parser=SimulatedParser(True, False))
    p = prepare(f, ask(resume=Resume(ids[:-1], len(" the"), len("on")), max_tokens=100))
    assert (p.text, p.parsed.reasoning) == (" water", "e")
    assert p.reader
    assert p.reader.push(simulated.decode(ids[-1:]), ids[-1:]).text == " turns"
    assert whole.endswith(" the water turns")


def test_what_can_go_on_elsewhere():
    assert can_resume(ask())
    assert can_resume(ask(tools_json=TOOLS, tool_choice="none"))
    assert can_resume(ask(tools_json=TOOLS))
    assert not can_resume(ask(tools_json=TOOLS), called=True)
    assert not can_resume(ask(tools_json=TOOLS, tool_choice="required"))
    assert not can_resume(ask(guide=Guide("json_object")))
    assert can_resume(ask(prompt_logprobs=0))
    assert not can_resume(ask(task=Task.EMBED))


# --- echo, and what generates nothing ---


def test_echo():
    f = front_end()
    assert prepare(f, ask(prompt=TextPrompt("the wheel"), echo=True)).echo == "the wheel"
    p = prepare(f, ask(prompt=TokenPrompt(simulated.encode(" the wheel")), echo=True, max_tokens=0))
    assert (p.echo, p.finish) == (" the wheel", "length")
    p = prepare(f, ask(prompt=TextPrompt("x"), echo=True, max_tokens=0, prompt_logprobs=1))
    assert (p.finish, p.discard, p.request.max_tokens) == (None, True, 1)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        f.prepare(1, ask(prompt=TextPrompt("x"), max_tokens=0))
    with pytest.raises(InvalidRequest, match="log-probabilities of prompts") as e:
        front_end(ALL - {"prompt_logprobs"}).prepare(1, ask(prompt=TextPrompt("x"), echo=True, prompt_logprobs=1))
    assert e.value.param == "echo"


def test_a_model_does_only_its_task():
    embedder = front_end(ALL | {"dimensions"}, tasks=("embed",))
    with pytest.raises(InvalidRequest, match="cannot generate text: it makes embeddings") as e:
        embedder.prepare(1, ask())
    assert e.value.param == "model"
    with pytest.raises(InvalidRequest, match="cannot score pairs of texts: it generates text"):
        front_end().prepare(1, ask(prompt=TextPrompt("x"), task=Task.SCORE, document="y"))
    p = embedder.prepare(1, ask(prompt=TextPrompt("the wheel"), task=Task.EMBED, dimensions=5))
    assert isinstance(p, PreparedEncoding)
    assert (p.request.text, p.request.dimensions, list(p.request.ids)) == (
        "the wheel",
        5,
        simulated.encode("the wheel"),
    )
    with pytest.raises(ContextExceeded) as e:
        embedder.prepare(1, ask(prompt=TextPrompt("x" * 5000), task=Task.EMBED))
    assert e.value.param == "input"
    with pytest.raises(InvalidRequest, match="one length only"):
        front_end(ALL, tasks=("embed",)).prepare(1, ask(prompt=TextPrompt("x"), task=Task.EMBED, dimensions=5))


@given(st.text(max_size=30), st.booleans())
def test_tokenize_and_detokenize_are_each_others_reverse(text, names):
    f = front_end(tasks=("embed",))
    p = f.prepare(1, ask(prompt=TextPrompt(text), task=Task.TOKENIZE, echo=names))
    assert isinstance(p, PreparedResult)
    assert list(p.result.token_ids) == simulated.encode(text)
    assert len(p.result.tokens) == (len(p.result.token_ids) if names else 0)
    if text:
        back = f.prepare(1, ask(prompt=TokenPrompt(p.result.token_ids), task=Task.DETOKENIZE))
        assert isinstance(back, PreparedResult)
        assert back.result.text == text


def test_log_probabilities_of_prompts_are_bounded():
    f = front_end()
    with pytest.raises(InvalidRequest, match="4000 tokens; with 20 alternatives") as e:
        f.prepare(1, ask(prompt=TokenPrompt([1] * 4000), prompt_logprobs=20))
    assert e.value.param == "prompt_logprobs"
    assert prepare(f, ask(prompt=TokenPrompt([1] * 3000), prompt_logprobs=20)).request.prompt_logprobs == 20


async def test_many_prompts_go_into_several_frames():
    token = TokenLogprob(1, b"a", -1.0, (TokenLogprob(2, b"b", -2.0),) * 20)
    session = Session("p")
    for number in range(7):
        session.columns.started.append(Started(number, 3000))
        session.columns.prompt_logprobs.append((number, (token,) * 3000))
        session.columns.streams.append(number)
    session.send(Load(), False, 0.0)
    assert not session.ended.is_set(), "what comes once is no sign of a proxy that does not read"
    frames: list[Frame] = [await session.next()]
    while not frames[-1].streams:
        frames.append(await session.next())
    assert len(frames) > 2
    assert [n for f in frames for n, _ in f.prompt_logprobs] == list(range(7))
    assert [s.stream for s in frames[0].started] == list(range(7)), "nothing comes before its start"
    assert list(frames[-1].streams) == list(range(7))
    sizes = [sum(1 + len(t.top) for _, tokens in f.prompt_logprobs for t in tokens) for f in frames]
    assert max(sizes) < MAX_ENTRIES + 64 * 1024
