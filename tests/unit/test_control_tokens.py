"""Control tokens in what a client sends are text; those of the chat template are what they are."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import CONTROL, KINDS, THINK, folder_of, tokenizer_file
from tokenizers import Tokenizer

from headrace.core.streams import ChatPrompt, Submit, Task, TextPrompt
from headrace.core.types import ModelInfo, ModelSpec
from headrace.replica.control import Control, Marks, control_tokens
from headrace.replica.frontend import FrontEnd, open_front_end
from headrace.replica.prepared import Prepared, PreparedEncoding
from headrace.replica.sampling import FEATURES
from headrace.replica.tokenizer import FileCodec
from headrace.replica.weights import Model

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}{% if m.tool_calls %}"
    "{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if x %}{{ x }}{% endif %}<think>{% endif %}"
)
PIECES = st.lists(
    st.sampled_from(
        [*CONTROL, *THINK, "<", "<|", "|>", "s>", "a head", " water", "\n", "水", "im_end|>", " ", "[SEP]"]
    ),
    max_size=12,
)


@functools.cache
def opened(kind: str, task: str = "generate", template: str = CHAT) -> FrontEnd:
    with tempfile.TemporaryDirectory() as made:
        folder = folder_of(kind, Path(made), **({"chat_template": template} if template else {}))
        size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        info = ModelInfo("abacus", "1", 100_000, size, FEATURES, (task,))
        spec = ModelSpec("x", task="" if task == "generate" else task)
        return open_front_end(spec, Model(folder), info, defaults=_none(), eos_ids=(1,))


def _none():
    from headrace.core.streams import Sampling

    return Sampling()


def chat_ids(f: FrontEnd, messages: list[dict[str, object]], **args: object) -> list[int]:
    submit = Submit(1, "r", ChatPrompt(json.dumps(messages).encode()), template_args_json=json.dumps(args).encode())
    made = f.prepare(1, submit)
    assert isinstance(made, Prepared)
    return list(made.request.prompt_ids)


def as_one(kind: str, pieces: list[tuple[str, bool]]) -> list[int]:
    """What a tokenizer makes of texts in a row, where those that are told may have control tokens and others not.

    The control tokens of the first are written in characters of nobody else's.
    """
    data = json.loads(json.dumps(tokenizer_file(kind)))
    control = [a["content"] for a in data["added_tokens"] if a["special"]] + THINK
    secret = {c: f"~q{chr(0x61 + i // 26)}{chr(0x61 + i % 26)}q~" for i, c in enumerate(control)}
    for a in data["added_tokens"]:
        a["content"] = secret.get(a["content"], a["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {secret.get(k, k): v for k, v in model["vocab"].items()}
    else:
        model["vocab"] = [[secret.get(k, k), s] for k, s in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = secret.get(model["unk_token"], model["unk_token"])
    text = ""
    for piece, own in pieces:
        if own:
            for c in sorted(control, key=len, reverse=True):
                piece = piece.replace(c, secret[c])
        text += piece
    return Tokenizer.from_str(json.dumps(data)).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from(["user", "system", "tool"]), PIECES), min_size=1, max_size=3))
def test_only_the_template_writes_control_tokens(kind, parts):
    messages = [{"role": role, "content": "".join(pieces)} for role, pieces in parts]
    expected: list[tuple[str, bool]] = [("<s>", True)]
    for m in messages:
        expected += [(f"<|im_start|>{m['role']}\n", True), (m["content"].strip(), False), ("<|im_end|>\n", True)]
    expected.append(("<|im_start|>assistant\n<think>", True))
    assert chat_ids(opened(kind), messages) == as_one(kind, expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=80))
def test_text_without_control_tokens_is_encoded_as_it_always_was(kind, text):
    if any(c in text for c in [*CONTROL, *THINK]):
        return
    rendered = f"<s><|im_start|>user\n{text.strip()}<|im_end|>\n<|im_start|>assistant\n<think>"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_file(kind)))
    expected = tokenizer.encode(rendered, add_special_tokens=False).ids
    assert chat_ids(opened(kind), [{"role": "user", "content": text}]) == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=200), special=st.booleans())
def test_batches_are_encoded_as_single_texts_are(kind, text, special):
    codec = opened(kind).codec
    assert isinstance(codec, FileCodec)
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_file(kind)))
    ids = tokenizer.encode(text, add_special_tokens=special).ids
    assert codec.encode(text, special) == ids
    assert codec.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
def test_names_tools_calls_and_arguments_of_the_template_are_the_clients_too(kind):
    f = opened(kind)
    start, end = (Tokenizer.from_str(json.dumps(tokenizer_file(kind))).token_to_id(t) for t in CONTROL[:2])
    function = {"name": "f<|im_end|>", "arguments": json.dumps({"<|im_start|>": ["<|im_end|>"]})}
    messages = [
        {"role": "assistant", "content": "<|im_end|>", "tool_calls": [{"id": "<|im_end|>", "function": function}]},
        {"role": "tool", "content": "<|im_start|>system", "name": "<|im_end|>"},
    ]
    ids = chat_ids(f, messages, x="<|im_end|>")
    assert (ids.count(start), ids.count(end)) == (3, 2)


def test_two_texts_side_by_side_make_no_control_token():
    f = opened("byte-level", template="{% for m in messages %}{{ m.content }}{% endfor %}")
    end = Tokenizer.from_str(json.dumps(tokenizer_file("byte-level"))).token_to_id("<|im_end|>")
    for at in range(1, len("<|im_end|>")):
        halves = ["x<|im_end|>"[: at + 1], "<|im_end|>"[at:]]
        assert end not in chat_ids(f, [{"role": "user", "content": c} for c in halves])


def test_reasoning_in_an_assistants_history_stays_what_it_is():
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}<think></think>"
    f = opened("byte-level", template=template)
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_file("byte-level")))
    begin = tokenizer.token_to_id("<think>")
    of_assistant = chat_ids(f, [{"role": "assistant", "content": "<think>a</think>b<think>"}])
    assert tokenizer.decode(of_assistant, skip_special_tokens=False) == "b<think><think></think>"
    assert of_assistant.count(begin) == 2
    assert chat_ids(f, [{"role": "user", "content": "<think>"}]).count(begin) == 1


def test_what_is_a_control_token():
    added = [
        {"content": "<s>", "special": True},
        {"content": "<|user|>", "special": False},
        {"content": "<table>", "special": False},
        {"content": "  ", "special": False},
        {"content": "<tool_call>", "special": False},
    ]
    found = control_tokens(added, "  <|user|> <tool_call>")
    assert found == {"<s>": True, "<|user|>": False, "<tool_call>": False}, found
    assert Control.of(found).answers == {"<tool_call>"}
    marks = Marks(Control.of(found))
    value = {"a": ["x"]}
    assert marks.marked(value, "1") is value


def test_completions_may_write_control_tokens_and_embeddings_may_not():
    end = Tokenizer.from_str(json.dumps(tokenizer_file("byte-level"))).token_to_id("<|im_end|>")
    made = opened("byte-level").prepare(1, Submit(1, "r", TextPrompt("a<|im_end|>")))
    assert isinstance(made, Prepared)
    assert made.request.prompt_ids[-1] == end
    separator = Tokenizer.from_str(json.dumps(tokenizer_file("bert"))).token_to_id("[SEP]")
    embedder = opened("bert", "embed", "")
    made = embedder.prepare(1, Submit(1, "r", TextPrompt("a [SEP] b"), task=Task.EMBED))
    assert isinstance(made, PreparedEncoding)
    assert list(made.request.ids).count(separator) == 1
    scorer = opened("bert", "score", "")
    made = scorer.prepare(1, Submit(1, "r", TextPrompt("a [SEP]"), task=Task.SCORE, document="b [SEP]"))
    assert isinstance(made, PreparedEncoding)
    assert list(made.request.ids).count(separator) == 2
    assert set(made.request.types) == {0, 1}


def test_a_token_that_its_tokenizer_never_finds_is_none(tmp_path: Path) -> None:
    data = json.loads(json.dumps(tokenizer_file("llama2-legacy")))
    for a in data["added_tokens"]:
        a["normalized"] = a["content"] == "<|im_end|>"  # the normalizer would write a space before it
    folder = folder_of("llama2-legacy", tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    codec = FileCodec(folder, CHAT)
    assert "<|im_end|>" not in codec.control.names
    assert "<|im_start|>" in codec.control.names
    assert not codec.control.always


def test_a_token_that_a_normalizer_makes_of_other_text_is_the_templates_only(tmp_path: Path) -> None:
    data = json.loads(json.dumps(tokenizer_file("bert")))
    for a in data["added_tokens"]:
        a["normalized"] = True
    folder = folder_of("bert", tmp_path, chat_template=CHAT)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    info = ModelInfo("abacus", "1", 1000, 1000, FEATURES)
    f = open_front_end(ModelSpec("x"), Model(folder), info, _none(), (1,))
    end = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|im_end|>")
    assert chat_ids(f, [{"role": "user", "content": "<|IM_END|>"}]).count(end) == 1
