"""What cannot fit a context is refused by its length, and nothing else is."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, TEXT, tokenizer_file
from tokenizers import Tokenizer

from headrace.core import simulated
from headrace.core.room import check_room, size_of
from headrace.core.streams import ChatPrompt, Prompt, Submit, Task, TextPrompt, TokenPrompt
from headrace.errors import ContextExceeded
from headrace.replica.longest import LEAST_BYTES, longest_token, prompt_bytes

SURE = {"byte-level", "llama3", "llama2", "llama2-legacy"}


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_file(kind)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=300), st.lists(st.sampled_from(TEXT)).map("".join), st.text(alphabet="ḰÅΩaA ")))
def test_no_token_stands_for_more_bytes_than_the_longest(kind, text):
    longest, sure = longest_token(tokenizer_file(kind))
    assert sure == (kind in SURE)
    if sure:
        tokens = len(tokenizer(kind).encode(text, add_special_tokens=False).ids)
        assert len(text.encode("utf-8", "surrogatepass")) <= tokens * longest


def test_where_no_number_is_sure_the_bound_is_generous() -> None:
    words = tokenizer_file("bert")
    assert len(tokenizer("bert").encode("x" * 10_000).ids) == 3, "one token of any number of bytes"
    assert prompt_bytes(*longest_token(words), 512) >= LEAST_BYTES
    drops = json.loads(json.dumps(tokenizer_file("byte-level")))
    drops["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    assert not longest_token(drops)[1]
    drops["normalizer"] = {"type": "StripAccents"}
    assert not longest_token(drops)[1]
    drops["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    assert longest_token(drops) == (27.0 * longest_token(tokenizer_file("byte-level"))[0], True)
    del drops["model"]["vocab"]["Ġ"]
    assert not longest_token(drops)[1], "bytes without a token vanish"


def chat(*contents: object) -> ChatPrompt:
    return ChatPrompt(json.dumps([{"role": "user", "content": c} for c in contents], ensure_ascii=False).encode())


@pytest.mark.parametrize(
    "prompt",
    [
        TextPrompt("a" * 101),
        TextPrompt("é" * 51),
        chat("a" * 5000),
        chat("a" * 60, "é" * 2500),
        chat([{"type": "text", "text": "a" * 5000}]),
        TokenPrompt([1] * 11),
    ],
)
def test_too_long(prompt: Prompt) -> None:
    with pytest.raises(ContextExceeded, match="10 tokens") as e:
        check_room(Submit(1, "r", prompt), 10, 100)
    assert e.value.status == 400
    assert e.value.code == "context_length_exceeded"
    assert e.value.param == ("messages" if isinstance(prompt, ChatPrompt) else "prompt")


@pytest.mark.parametrize(
    "prompt",
    [TextPrompt("a" * 100), TextPrompt("é" * 50), chat(*["a"] * 100), chat("\0" * 90), TokenPrompt([1] * 10)],
)
def test_what_may_fit_is_not_refused(prompt: Prompt) -> None:
    check_room(Submit(1, "r", prompt), 10, 100)
    check_room(Submit(1, "r", TextPrompt("a" * 10**6)), 10, 0)
    check_room(Submit(1, "r", ChatPrompt(b"[" * 10**5)), 10, 100)
    check_room(Submit(1, "r", ChatPrompt(b'[1, {"content": 2}, {"content": [3]}]' + b" " * 9000)), 10, 100)


def test_pairs_count_together() -> None:
    submit = Submit(1, "r", TextPrompt("a" * 60), task=Task.SCORE, document="b" * 60)
    with pytest.raises(ContextExceeded) as e:
        check_room(submit, 10, 100)
    assert e.value.param == "input"


@given(st.text(), st.integers(0, 50))
def test_sizes(text, limit):
    size = len(text.encode("utf-8", "surrogatepass"))
    assert (size_of(text, limit) > limit) == (size > limit)


@given(st.text())
def test_the_simulated_model_too(text):
    longest = max(len(w.encode()) for w in simulated.WORDS)
    assert len(text.encode("utf-8", "surrogatepass")) <= longest * len(simulated.encode(text))
