"""Prompts and forms: work for the replica, its tokenizer, its template and its engine."""

from __future__ import annotations

import json
from typing import Any

from strangers.bodies import CHAT, COMPLETE, MESSAGES, MOST, body
from strangers.script import Hostile, Script, Talk, Where
from strangers.texts import PLAIN


def _post(where: Where, path: str, **fields: Any) -> bytes:
    return where.post(path, json.dumps({"model": "demo"} | fields, ensure_ascii=False).encode())


def _plain(where: Where, text: str) -> Script:
    return Script.of(where.post(PLAIN, text.encode(), media="text/plain"), limit_s=25.0)


def _form(where: Where, **form: Any) -> bytes:
    return where.post(CHAT, body(structured_outputs=form, max_tokens=8))


def _abandoned(where: Where) -> Script:
    """16 clients ask for forms that take long and leave; then a simple form is to be answered."""
    leaving = [Talk((_form(where, regex=f"(a{{1,1000}}){{1,{1000 + i}}}"),), leave_s=1.0) for i in range(16)]
    simple = Talk((_form(where, choice=["yes", "no"]),))
    return Script((*leaving, simple, simple), 16 * 300, at_once=16, limit_s=20.0)


def _bombs(where: Where) -> Script:
    schemas = (
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "string", "maxLength": 10**6}},
            "maxItems": 10**6,
        },
        {"type": "string", "pattern": "^(a|b|ab)*(c{1,500}){1,500}$"},
        {"anyOf": [{"type": "object", "properties": {f"p{i}": {"type": "string"}}} for i in range(1_000)]},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    )
    return Script(tuple(Talk((_form(where, json=s),), leave_s=10.0) for s in schemas), 4 * 2**16)


def _tools(count: int) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {
            "type": "object", "properties": {f"p{j}": {"type": "string", "maxLength": 1000} for j in range(45)}}}}
        for i in range(count)
    ]  # fmt: skip


def _words(size: int) -> str:
    return "words " * (size // 6)


INPUTS = (
    Hostile("prompt-100k", "100 kB of words", lambda w: _plain(w, _words(100_000))),
    Hostile("prompt-500k", "500 kB of words", lambda w: _plain(w, _words(500_000)), quick=True),
    Hostile("prompt-4m", "4 MB of words, as plain text", lambda w: _plain(w, _words(3_960_000)), quick=True),
    Hostile("prompt-8m", "8 MB of words to /v1/completions",
            lambda w: Script.of(_post(w, COMPLETE, prompt=_words(MOST - 500)), limit_s=25.0)),
    Hostile("prompt-one-word", "one word of 500 kB", lambda w: _plain(w, "a" * 500_000), quick=True),
    Hostile("prompt-emoji", "8 MB of four-byte characters", lambda w: _plain(w, "😀" * (MOST // 4 - 100))),
    Hostile("prompt-combining", "one letter with 250,000 accents", lambda w: _plain(w, "a" + "\u0300\u0323" * 125_000)),
    Hostile("prompt-newlines", "a million newlines", lambda w: _plain(w, "a" + "\n" * 1_000_000 + "b")),
    Hostile("prompt-special", "special tokens, 100,000 times", lambda w: _plain(w, "<|end|><|user|>" * 50_000)),
    Hostile("messages-long", "4,096 messages of 2 KB", lambda w: Script.of(
        _post(w, CHAT, messages=[{"role": "user", "content": _words(1_900)}] * 4096), limit_s=25.0)),
    Hostile("messages-short", "4,096 messages of a letter", lambda w: Script.of(
        _post(w, CHAT, messages=MESSAGES * 4096))),
    Hostile("tokenize-names", "8 MB to /tokenize, with the tokens' names", lambda w: Script.of(
        _post(w, "/tokenize", prompt=_words(MOST - 500), return_token_strs=True), limit_s=25.0)),
    Hostile("tokenize-messages", "4 MB of messages to /tokenize", lambda w: Script.of(
        _post(w, "/tokenize", messages=[{"role": "user", "content": _words(4_000_000)}]), limit_s=25.0)),
    Hostile("tokenize-sim", "1 MB to /tokenize of the simulated engine, with the tokens' names", lambda w: Script.of(
        _post(w, "/tokenize", model="sim", prompt="a" * 1_000_000, return_token_strs=True), limit_s=25.0), "sim"),
    Hostile("template-tokens", "4,096 messages, and tokens of 15 KB for the template to write between them",
            lambda w: Script.of(_post(w, CHAT, messages=MESSAGES * 4096, chat_template_kwargs={
                "bos_token": "b" * 7_000, "eos_token": "e" * 7_000}), limit_s=25.0)),
    Hostile("tools-demanded", "100 tools of 2 KB, one of which must be called", lambda w: Script.of(
        _post(w, CHAT, messages=MESSAGES, max_tokens=8, tool_choice="required", tools=_tools(100)), limit_s=25.0)),
    Hostile("prompt-sim", "4 MB of words to the simulated engine", lambda w: Script.of(
        _post(w, COMPLETE, model="sim", prompt=_words(4_000_000)), limit_s=25.0), "sim"),
    Hostile("completions-128", "128 prompts of 60 KB", lambda w: Script.of(
        _post(w, COMPLETE, model="sim", prompt=[_words(60_000)] * 128, max_tokens=4), limit_s=25.0), "sim", quick=True),
    Hostile("completions-n", "8 prompts, 16 answers each", lambda w: Script.of(
        _post(w, COMPLETE, model="sim", prompt=["a"] * 8, n=16, max_tokens=50)), "sim"),
    Hostile("logprobs", "8 prompts, 16 answers each, 20 log-probabilities for each token", lambda w: Script.of(
        _post(w, COMPLETE, model="sim", prompt=["a"] * 8, n=16, max_tokens=50, logprobs=20)), "sim"),
    Hostile("prompt-logprobs", "log-probabilities of a prompt of 3,000 tokens", lambda w: Script.of(
        _post(w, COMPLETE, model="sim", prompt=" water" * 3_000, prompt_logprobs=20, max_tokens=1)), "sim"),
    Hostile("embeddings-2048", "2,048 texts of 4 KB", lambda w: Script.of(
        _post(w, "/v1/embeddings", model="sim", input=[_words(3_900)] * 2048), limit_s=25.0), "sim", quick=True),
    Hostile("embeddings-ids", "2,048 lists of 1,300 token ids", lambda w: Script.of(
        _post(w, "/v1/embeddings", model="sim", input=[[1] * 1_300] * 2048), limit_s=25.0), "sim"),
    Hostile("embeddings-short", "2,048 texts of a letter", lambda w: Script.of(
        _post(w, "/v1/embeddings", model="sim", input=["a"] * 2048), limit_s=25.0), "sim"),
    Hostile("embeddings-answer", "an answer of 2,048 vectors of 1,024 numbers", lambda w: Script.of(
        _post(w, "/v1/embeddings", model="sim", input=["a"] * 2048, dimensions=1024), limit_s=25.0), "sim"),
    Hostile("embeddings-dimensions", "2,048 vectors of 65,536 numbers", lambda w: Script.of(
        _post(w, "/v1/embeddings", model="sim", input=["a"] * 2048, dimensions=65_536), limit_s=25.0), "sim",
        quick=True),
    Hostile("rerank-2048", "2,048 documents of 4 KB", lambda w: Script.of(
        _post(w, "/rerank", model="sim", query="water", documents=[_words(3_900)] * 2048), limit_s=25.0), "sim"),
    Hostile("rerank-query", "a query of 500 KB for 2,048 documents", lambda w: Script.of(
        _post(w, "/rerank", model="sim", query=_words(500_000), documents=["a"] * 2048), limit_s=25.0), "sim",
        quick=True),
    Hostile("score-pairs", "2,048 pairs of 2 KB", lambda w: Script.of(
        _post(w, "/score", model="sim", text_1=[_words(1_900)] * 2048, text_2=[_words(1_900)] * 2048), limit_s=25.0),
        "sim"),
    Hostile("forms-abandoned", "16 clients leave forms that take long; then a simple form", _abandoned, quick=True),
    Hostile("forms-bombs", "four schemas that take long to compile, and whose clients leave after ten seconds", _bombs),
    Hostile("grammar", "a grammar of 64 KB", lambda w: Script.of(_form(
        w, grammar="root ::= " + " | ".join(f'"{i}" root' for i in range(4_500))), limit_s=25.0)),
)  # fmt: skip
