"""Real vLLM: an answer's form begins where its reasoning ends, also for models that reason only when they are asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
from integration.served_fixtures import client_of
from model_fixtures import SmallModel
from real_vllm.test_vllm_api import served

pytest.importorskip("vllm", reason="runs in an environment of its own: make test-vllm")

pytestmark = pytest.mark.timeout(300)

THINK, END = 510, 511
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if not thinking %}<think>\n</think>{% else %}<think>{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["x", "yy"]}},
    "required": ["a", "kind"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
CALL = {"type": "function", "function": {"name": "turn", "parameters": SCHEMA}}


def a_model_that_reasons(source: Path, folder: Path) -> Path:
    """The small model with the marks of reasoning in the place of its two last tokens."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer.json"
    t = json.loads(path.read_text())
    vocab, merges = t["model"]["vocab"], t["model"]["merges"]
    gone = {token for token, number in vocab.items() if number in (THINK, END)}
    t["model"]["merges"] = [m for m in merges if "".join(m) not in gone]
    t["model"]["vocab"] = {token: number for token, number in vocab.items() if token not in gone}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    t["added_tokens"] += [{"id": THINK, "content": "<think>"} | plain, {"id": END, "content": "</think>"} | plain]
    path.write_text(json.dumps(t))
    return folder


async def test_a_form_begins_where_reasoning_ends(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    source = a_model_that_reasons(small_models["llama"]["hf"], tmp_path / "model")
    # This parser takes reasoning out only if the template's argument says that the model reasons.
    how: Any = {"chat_template": TEMPLATE, "reasoning_parser": "deepseek_v3"}
    async with served(tmp_path, source, **how) as w, client_of(w) as client:
        await it_reasons_freely_and_then_answers_in_form(client)
        await a_demanded_call_comes_after_reasoning(client)
        await a_form_that_is_never_begun(client)
        await without_reasoning_the_form_is_the_whole_answer(client)


async def ask(client: openai.AsyncOpenAI, thinking: bool, end: float, seed: int = 0, **how: Any) -> Any:
    """The answer's message; `end`: how likely the end of reasoning is made, or is not."""
    answer = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Turn the wheel"}],
        max_tokens=how.pop("max_tokens", 250),
        temperature=1,
        seed=seed,
        logit_bias={str(END): end},  # type: ignore[dict-item]
        extra_body={"chat_template_kwargs": {"thinking": thinking}},
        **how,
    )
    return answer.choices[0].message


def in_form(text: str | None) -> bool:
    found = json.loads(text or "")
    return set(found) == {"a", "kind"} and 0 <= found["a"] <= 99 and found["kind"] in ("x", "yy")


async def it_reasons_freely_and_then_answers_in_form(client: openai.AsyncOpenAI) -> None:
    seen = []
    for seed in range(8):
        m = await ask(client, True, 8.0, seed, response_format=FORM)
        if m.content is not None:
            assert in_form(m.content), m
            seen.append(getattr(m, "reasoning", None) or "")
    assert any(len(reasoning) > 20 and not reasoning.lstrip().startswith("{") for reasoning in seen), seen


async def a_demanded_call_comes_after_reasoning(client: openai.AsyncOpenAI) -> None:
    m = await ask(client, True, 100.0, tools=[CALL], tool_choice={"type": "function", "function": {"name": "turn"}})
    (call,) = m.tool_calls
    assert in_form(call.function.arguments)


async def a_form_that_is_never_begun(client: openai.AsyncOpenAI) -> None:
    m = await ask(client, True, -100.0, response_format=FORM, max_tokens=20)
    assert not m.content
    assert m.reasoning


async def without_reasoning_the_form_is_the_whole_answer(client: openai.AsyncOpenAI) -> None:
    m = await ask(client, False, 0.0, response_format=FORM)
    assert in_form(m.content)
    assert not getattr(m, "reasoning", None)
    body: Any = {"structured_outputs": {"json": SCHEMA}}
    done = await client.completions.create(model="demo", prompt="Turn<think>", max_tokens=250, extra_body=body)
    assert in_form(done.choices[0].text), "nothing is taken out of a completion"
