"""Prompts, chat templates, sampling defaults, feature and context checks."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from headrace.core import simulated
from headrace.core.streams import ChatPrompt, Prompt, Resume, Sampling, Submit, TextPrompt, TokenPrompt
from headrace.core.types import ModelInfo, ModelSpec
from headrace.errors import CannotResume, ContextExceeded, InvalidRequest, UserError
from headrace.replica.frontend import FrontEnd, Prepared, open_front_end
from headrace.replica.sampling import FEATURES, NEUTRAL, check, complete, context_of, read_generation_config
from headrace.replica.template import ChatTemplate, find_special_tokens, find_template, read_messages
from headrace.replica.weights import Model

NOON = dt.datetime(2026, 7, 1, 12, 0, tzinfo=dt.UTC).timestamp()


def messages(*contents: Any, role: str = "user") -> ChatPrompt:
    return ChatPrompt(json.dumps([{"role": role, "content": c} for c in contents]).encode())


def model_folder(folder: Path, template: str = "") -> Path:
    """A byte-level model whose tokenizer begins every text with <s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<s>", "</s>", *alphabet])}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(["<s>", "</s>"])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    t.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    if template:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def front_end(
    folder: Path | None, *, context: int = 64, features: frozenset[str] = FEATURES, template: str = ""
) -> FrontEnd:
    info = ModelInfo("abacus", "1", context, 258 if folder else simulated.VOCAB_SIZE, features)
    defaults = Sampling(temperature=0.5, top_k=7)
    return open_front_end(ModelSpec("x", chat_template=template), Model(folder), info, defaults, (1,))


def prepare(f: FrontEnd, prompt: Prompt, **how: Any) -> Prepared:
    return f.prepare(1, Submit(1, "r", prompt, **how))


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def test_the_beginning_of_sequence_is_there_once(tmp_path: Path) -> None:
    f = front_end(model_folder(tmp_path, TEMPLATE))
    chat = list(prepare(f, messages("a")).request.prompt_ids)
    text = list(prepare(f, TextPrompt("a")).request.prompt_ids)
    assert chat == [0, text[1], 1]
    assert text == [0, text[1]]
    assert list(prepare(f, TokenPrompt([5, 6])).request.prompt_ids) == [5, 6]


def test_the_deployments_template_wins(tmp_path: Path) -> None:
    f = front_end(model_folder(tmp_path, TEMPLATE), template="{{ messages[0].content }}!")
    expected = prepare(f, TextPrompt("a!")).request.prompt_ids[1:]
    assert list(prepare(f, messages("a")).request.prompt_ids) == list(expected)


def test_without_a_template_chat_is_refused(tmp_path: Path) -> None:
    f = front_end(model_folder(tmp_path))
    with pytest.raises(InvalidRequest, match=r"no chat template.*/v1/completions"):
        prepare(f, messages("a"))


def test_the_context_is_checked_with_numbers() -> None:
    f = front_end(None, context=10)
    with pytest.raises(ContextExceeded, match="10 tokens; this model's context is 10"):
        prepare(f, TokenPrompt([1] * 10))
    assert prepare(f, TokenPrompt([1] * 7)).request.max_tokens == 3
    assert prepare(f, TokenPrompt([1] * 7), max_tokens=2).request.max_tokens == 2
    assert prepare(f, TokenPrompt([1] * 7), max_tokens=100).request.max_tokens == 3


@pytest.mark.parametrize("ids", [[-1], [simulated.VOCAB_SIZE], [1, 10**9]])
def test_token_prompts_are_range_checked(ids: list[int]) -> None:
    with pytest.raises(InvalidRequest, match=f"0 to {simulated.VOCAB_SIZE - 1}"):
        prepare(front_end(None), TokenPrompt(ids))


def test_an_empty_prompt() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        prepare(front_end(None), TokenPrompt([]))
    assert list(prepare(front_end(None), TextPrompt("")).request.prompt_ids) == [1]
    with pytest.raises(InvalidRequest, match="max_tokens"):
        prepare(front_end(None), TextPrompt("a"), max_tokens=0)


def test_a_resumed_request_continues() -> None:
    f = front_end(None)
    ids = simulated.encode("one of the wheel")
    p = prepare(f, TokenPrompt([7, 8]), resume=Resume(ids[:2], 3), max_tokens=10)
    assert list(p.request.prompt_ids) == [7, 8, *ids[:2]]
    assert (p.request.delivered, p.request.max_tokens) == (2, 8)
    assert (p.position, p.prompt_tokens) == (2, 2)
    assert p.text == simulated.decode(ids[:2])[3:]
    over = prepare(f, TokenPrompt([7]), resume=Resume(ids[:3], 0), max_tokens=3)
    assert over.finish == "length"
    stopped = prepare(f, TokenPrompt([7]), resume=Resume(ids, 2), stop=("of",))
    assert stopped.finish == "stop"
    with pytest.raises(InvalidRequest):
        prepare(f, TokenPrompt([7]), resume=Resume([10**6], 0))


def test_penalties_go_on_only_where_the_engine_counts_what_was_delivered() -> None:
    counts = front_end(None, features=FEATURES | {"resumed_penalties"})
    for penalty in ({"presence_penalty": 0.5}, {"frequency_penalty": -0.5}):
        asked = {"resume": Resume([5, 6], 0), "sampling": Sampling(**penalty), "max_tokens": 9}
        assert prepare(counts, TokenPrompt([7]), **asked).request.delivered == 2
        with pytest.raises(CannotResume, match="counts"):
            prepare(front_end(None), TokenPrompt([7]), **asked)
    asked = {"resume": Resume([5], 0), "sampling": Sampling(repetition_penalty=1.3), "max_tokens": 9}
    assert prepare(front_end(None), TokenPrompt([7]), **asked).request.delivered == 1


# --- sampling ---


def test_gaps_are_filled_by_the_model_then_neutrally() -> None:
    s = prepare(front_end(None), TextPrompt("a"), sampling=Sampling(top_p=0.3)).request.sampling
    assert (s.temperature, s.top_k, s.top_p) == (0.5, 7, 0.3)
    assert complete(Sampling(), Sampling()) == NEUTRAL
    asked = prepare(front_end(None), TextPrompt("a"), sampling=Sampling(temperature=0.0, top_k=0)).request.sampling
    assert (asked.temperature, asked.top_k) == (0.0, 0), "what was asked for wins, also when it is nothing"


GIVEN = {
    "temperature": 0.7, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 1, "presence_penalty": 0.5,
    "frequency_penalty": -0.5, "repetition_penalty": 1.1, "logit_bias": {3: 1.0}, "logprobs": 0, "ignore_eos": True,
    "min_tokens": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_what_an_engine_cannot_do_is_refused_by_name(name: str) -> None:
    asked = replace(Sampling(), **{name: GIVEN[name]})
    check(asked, FEATURES, "abacus", 10)
    with pytest.raises(InvalidRequest, match=f"'abacus', which does not support '{name}'") as e:
        check(asked, FEATURES - {name}, "abacus", 10)
    assert e.value.param == name


def test_neutral_values_need_no_feature() -> None:
    check(replace(NEUTRAL, temperature=0.0), frozenset(), "abacus", 10)
    check(NEUTRAL, frozenset(), "abacus", 10)
    with pytest.raises(InvalidRequest, match="top_logprobs"):
        check(Sampling(logprobs=1), frozenset({"logprobs"}), "abacus", 10)
    with pytest.raises(InvalidRequest, match="logit_bias"):
        check(Sampling(logit_bias={10: 1.0}), FEATURES, "abacus", 10)


def test_every_parameter_is_covered() -> None:
    assert set(GIVEN) | {"top_logprobs"} == FEATURES


def test_generation_config(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == (Sampling(), ())
    (tmp_path / "config.json").write_text('{"eos_token_id": 9, "n_positions": 77}')
    assert read_generation_config(tmp_path) == (Sampling(), (9,))
    assert context_of(tmp_path) == 77
    generation = {"temperature": 0.6, "top_k": 5, "eos_token_id": [2, 3], "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_generation_config(tmp_path) == (Sampling(temperature=0.6, top_k=5), (2, 3))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation | {"do_sample": False}))
    assert read_generation_config(tmp_path)[0].temperature == 0.0


# --- templates ---


def rendered(source: str, *contents: str, **tokens: str) -> str:
    return ChatTemplate(source, tokens).render(read_messages(messages(*contents).messages_json), now_unix_s=NOON)


def test_templates_have_what_hugging_face_templates_use() -> None:
    loop = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    assert rendered(loop, "a", "b") == "a"
    assert rendered("{{ strftime_now('%Y') }}{{ messages | tojson }}", "é") == '2026[{"role": "user", "content": "é"}]'
    assert rendered("{% generation %}{{ messages[0].content }}{% endgeneration %}", "x") == "x"
    assert rendered("{% if add_generation_prompt %}go{% endif %}{% if tools %}no{% endif %}", "x") == "go"
    assert rendered("  {% if true %}\n  a\n  {% endif %}\n", "x") == "  a\n"


def test_a_template_may_refuse() -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: roles must alternate") as e:
        rendered("{{ raise_exception('roles must alternate') }}", "x")
    assert e.value.param == "messages"
    with pytest.raises(InvalidRequest, match="UndefinedError"):
        rendered("{{ nothing.at.all }}", "x")


def test_templates_are_in_a_sandbox() -> None:
    with pytest.raises(InvalidRequest):
        rendered("{{ messages.__class__.__mro__[1].__subclasses__() }}", "x")
    with pytest.raises(InvalidRequest):
        rendered("{{ messages.append(1) }}", "x")
    with pytest.raises(UserError, match="chat template cannot be used"):
        rendered("{% if %}", "x")


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert find_template(tmp_path) == ""
    both = {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(both | {"eos_token": {"content": "<e>"}, "bos_token": None})
    )
    assert find_template(tmp_path) == "d"
    assert find_special_tokens(tmp_path) == {"bos_token": "", "eos_token": "<e>"}
    (tmp_path / "chat_template.jinja").write_text("j")
    assert find_template(tmp_path) == "j"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"no json", "messages"),
        (b"[]", "messages"),
        (b"{}", "messages"),
        (b'["hi"]', "messages[0]"),
        (b'[{"content": "x"}]', "messages[0]"),
        (b'[{"role": "user"}]', "messages[0].content"),
        (b'[{"role": "user", "content": 3}]', "messages[0].content"),
        (b'[{"role": "user", "content": [{"type": "image_url"}]}]', "messages[0].content[0]"),
    ],
)
def test_bad_messages_are_named(body: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as e:
        read_messages(body)
    assert e.value.param == param


def test_content_may_be_a_list_of_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_messages(messages(parts).messages_json) == [{"role": "user", "content": "ab"}]
    assert read_messages(b'[{"role": "assistant", "content": null}]')[0]["content"] == ""


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=3))
def test_the_simulated_template_is_the_pure_function(contents: list[str]) -> None:
    plain = simulated.chat_prompt([{"role": "user", "content": c} for c in contents])
    assert rendered(simulated.CHAT_TEMPLATE, *contents) == plain
    ids = list(prepare(front_end(None, context=4096), messages(*contents)).request.prompt_ids)
    assert ids == simulated.encode(plain)
