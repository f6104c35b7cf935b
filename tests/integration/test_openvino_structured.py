"""Structured answers from the OpenVINO engine, through the whole replica process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from replica_fixtures import ProxySide, a_spec, chat, running

from headrace.core.phase import Phase
from headrace.core.streams import Guide, Resume, Sampling
from headrace.replica.engines.openvino_guides import FEATURES

pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")

QUESTION = chat("Explain about Machine Learning?")
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
# The built-in model would fill all its answer with the white space that JSON allows.
MOVING = Sampling(temperature=0.0, frequency_penalty=2.0)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "kind": {"enum": ["x", "yy"]}},
    "required": ["a", "kind"],
    "additionalProperties": False,
}
SCHEMA_GUIDE = Guide("json_schema", json.dumps(SCHEMA))


async def test_structured_answers(tmp_path: Path) -> None:
    async with running(a_spec(engine="openvino", cpus=2), tmp_path) as replica:
        status = await replica.ready()
        assert status.model is not None
        assert status.model.features >= FEATURES
        async with replica.session() as p:
            await each_kind_has_its_form(p)
            await json_comes_beside_streams_without_a_guide(p)
            await broken_guides_end_only_themselves(p)
            await what_would_end_the_process_does_not(p)
            await an_abort_while_the_guide_is_tried(p)
            await what_does_not_go_with_a_guide(p)
            await each_kind_has_its_form(p)


async def test_a_form_that_takes_too_long_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    spec = a_spec(engine="openvino", cpus=2, options={"guide_trial_s": 2})
    async with running(spec, tmp_path) as replica:
        await replica.ready()
        async with replica.session() as p:
            alone = await p.ask(QUESTION, max_tokens=60, sampling=GREEDY)
            number = await p.start(QUESTION, max_tokens=60, sampling=GREEDY)
            await refused(p, Guide("regex", "(.{1,300}){1,300}x"), "The regex takes too long to compile.")
            assert (await p.end_of(number)).tokens == alone.tokens
            seen = await p.ask(QUESTION, max_tokens=60, sampling=MOVING, guide=Guide("regex", "[ab]{3}c"))
            assert re.fullmatch("[ab]{3}c", seen.text)


async def test_forms_that_were_given_up_hold_up_nobody(tmp_path: Path) -> None:
    spec = a_spec(engine="openvino", cpus=2, options={"guide_trial_s": 15})
    async with running(spec, tmp_path) as replica:
        await replica.ready()
        async with replica.session("greedy") as greedy, replica.session("modest") as p:
            bombs = [
                await greedy.start(QUESTION, guide=Guide("regex", f"(a{{1,1000}}){{1,{1000 + i}}}"), sampling=MOVING)
                for i in range(16)
            ]
            await greedy.until(lambda: len(greedy.frames) > 2)
            assert greedy.load.waiting == 0, "what waits for its form is not what the engine does not step on"
            for number in bombs:
                await greedy.abort(number)
            seen = await p.ask(QUESTION, max_tokens=60, sampling=MOVING, guide=Guide("choices", '["yes", "no"]'))
            assert seen.text in ("yes", "no")
            seen = await p.ask(QUESTION, max_tokens=60, sampling=MOVING, guide=Guide("regex", "[ab]{3}c"))
            assert re.fullmatch("[ab]{3}c", seen.text)
            await greedy.until(lambda: all(greedy.seen[n].over for n in bombs))


async def each_kind_has_its_form(p: ProxySide) -> None:
    for guide, form in (
        (Guide("regex", "[ab]{3}c+d"), r"[ab]{3}c+d"),
        (Guide("grammar", 'root ::= "x" mid "z"\nmid ::= "1" | "2" mid'), r"x2*1z"),
        (Guide("choices", json.dumps(["yes (really?)", "no.", "a\\b|c"])), r"yes \(really\?\)|no\.|a\\b\|c"),
        (Guide("choices", json.dumps(['日本 \n"€" -/{2}[x]^$*+'])), r"日本 \n\"€\" -/\{2\}\[x\]\^\$\*\+"),
    ):
        seen = await p.ask(QUESTION, max_tokens=100, sampling=MOVING, guide=guide)
        assert seen.finished is not None
        assert seen.finished.reason == "stop", seen.finished
        assert re.fullmatch(form, seen.text), (guide, seen.text)
    seen = await p.ask(QUESTION, max_tokens=30, sampling=MOVING, guide=Guide("json_object"))
    assert seen.text.startswith("{")


async def json_comes_beside_streams_without_a_guide(p: ProxySide) -> None:
    alone = await p.ask(QUESTION, max_tokens=60, sampling=GREEDY)
    free = [await p.start(QUESTION, max_tokens=60, sampling=GREEDY) for _ in range(3)]
    guided = [await p.start(QUESTION, max_tokens=200, sampling=MOVING, guide=SCHEMA_GUIDE) for _ in range(3)]
    for number in guided:
        seen = await p.end_of(number)
        assert seen.finished is not None
        assert seen.finished.reason == "stop"
        answer = json.loads(seen.text)
        assert isinstance(answer["a"], int)
        assert answer["kind"] in ("x", "yy")
    for number in free:
        assert (await p.end_of(number)).tokens == alone.tokens


async def broken_guides_end_only_themselves(p: ProxySide) -> None:
    free = await p.start(QUESTION, max_tokens=60, sampling=GREEDY)
    for guide, says in (
        (Guide("json_schema", '{"type": 5}'), "Type should be a string"),
        (Guide("json_schema", "{bad"), "not JSON"),
        (Guide("json_schema", "false"), "cannot accept any value"),
        (Guide("json_schema", '{"$ref": "#/nope"}'), "nope"),
        (Guide("json_schema", '{"$ref": "http://example.com/x"}'), "URI should"),
        (Guide("json_schema", '{"uniqueItems": true}'), "uniqueItems"),
        (Guide("regex", "(yes|"), "parenthesis is not closed"),
        (Guide("regex", "(?=a)b"), "Lookahead"),
        (Guide("grammar", "start: 'a'"), "Unexpected character"),
        (Guide("grammar", "root ::= b"), "not defined"),
    ):
        await refused(p, guide, says)
    assert len((await p.end_of(free)).tokens) == 60


async def refused(p: ProxySide, guide: Guide, says: str) -> None:
    """By the front end, before it has started, or by the engine."""
    seen = await p.ask(QUESTION, max_tokens=50, sampling=MOVING, guide=guide)
    failure = (seen.rejected and seen.rejected.failure) or (seen.finished and seen.finished.failure)
    assert failure
    assert failure.kind == "invalid_request"
    message = failure.message
    assert says in message
    assert message.endswith(".")
    assert ".cc" not in message, "no place in anybody's source"
    assert not seen.tokens


async def what_would_end_the_process_does_not(p: ProxySide) -> None:
    await refused(p, Guide("regex", "(" * 100_000 + "a" + ")" * 100_000), "more than this engine can compile")
    await refused(p, Guide("regex", "a\0"), "NUL")


async def an_abort_while_the_guide_is_tried(p: ProxySide) -> None:
    number = await p.start(QUESTION, guide=Guide("regex", "[a-z]{900}"), sampling=MOVING)
    await p.abort(number)
    seen = await p.end_of(number)
    assert seen.finished is not None
    assert seen.finished.reason == "abort"
    await p.until(lambda: p.load.running == p.load.waiting == 0)


async def what_does_not_go_with_a_guide(p: ProxySide) -> None:
    guide = Guide("regex", "(yes|no)")
    for sampling, resume, kind, says in (
        (Sampling(temperature=0.0), Resume([300, 301], 0), "cannot_resume", "cannot go on"),
        (Sampling(temperature=0.0, ignore_eos=True), None, "invalid_request", "ignore_eos"),
        (Sampling(temperature=0.0, min_tokens=9), None, "invalid_request", "min_tokens"),
    ):
        seen = await p.ask(QUESTION, max_tokens=9, sampling=sampling, resume=resume, guide=guide)
        failure = (seen.rejected and seen.rejected.failure) or (seen.finished and seen.finished.failure)
        assert failure
        assert failure.kind == kind
        assert says in failure.message


async def test_parsers_are_features_and_unknown_ones_fail_the_load(tmp_path: Path) -> None:
    spec = a_spec(engine="openvino", tool_parser="llama3_json", reasoning_parser="phi4")
    async with running(spec, tmp_path / "known") as replica:
        status = await replica.ready()
        assert status.model is not None
        assert status.model.features >= {"tools", "tool_parser", "reasoning_parser"}
        async with replica.session() as p:
            await refused(p, Guide("regex", "(yes|no)"), "without --reasoning_parser")
            seen = await p.ask("The water", max_tokens=9, sampling=MOVING, guide=Guide("regex", "(yes|no)"))
            assert seen.text in ("yes", "no"), "nothing is taken out of a completion"
    async with running(a_spec(engine="openvino", tool_parser="hermes"), tmp_path / "unknown") as replica:
        status = await replica.status_when(lambda s: s.phase is Phase.FAILED)
        assert status.permanent
        assert "llama3_json" in status.reason


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi"])
async def test_structured_answers_of_converted_models(name: str, small_models: dict, tmp_path: Path) -> None:
    """Their OpenVINO tokenizers come from the converter."""
    async with running(a_spec(engine="openvino", source=str(small_models[name]["ov"])), tmp_path) as replica:
        status = await replica.ready()
        assert status.model is not None
        assert status.model.features >= FEATURES
        async with replica.session() as p:
            for guide, form in (
                (Guide("choices", '["mill", "日本"]'), "mill|日本"),
                (Guide("regex", "[0-9]{4}-[a-f]+\\."), r"\d{4}-[a-f]+\."),
                (Guide("json_schema", '{"enum": [{"a": 1}, {"b": "é"}]}'), r'\{"(a": ?1|b": ?"é")\}'),
            ):
                seen = await p.ask("The water", max_tokens=60, sampling=Sampling(seed=1), guide=guide)
                assert seen.finished is not None
                if guide.kind != "regex":
                    assert seen.finished.reason == "stop", seen
                assert seen.finished.reason == "length" or re.fullmatch(form, seen.text), seen.text
