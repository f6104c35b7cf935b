"""Bodies that are nearly right: valid ones for each endpoint, changed in a few places; and their heads a little."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from fuzz.case import Case, rng

KIND = "bodies"
MODELS = ("sim1", "sim1", "demo", "nosuch")
_CHAT = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}
_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}

BASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", _CHAT),
    ("/v1/chat/completions", _CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", _CHAT | {"n": 2, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["a"], "top_k": 4}),
    ("/v1/chat/completions", _CHAT | {"logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.5}}),
    ("/v1/chat/completions", _CHAT | {"tools": [_TOOL], "tool_choice": "auto"}),
    ("/v1/chat/completions", _CHAT | {"response_format": _SCHEMA}),
    ("/v1/chat/completions", _CHAT | {"structured_outputs": {"choice": ["yes", "no"]}, "priority": 3}),
    ("/v1/chat/completions", _CHAT | {"chat_template_kwargs": {"a": 1}, "metadata": {"a": "b"}, "user": "me"}),
    ("/v1/chat/completions", _CHAT | {"messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi."}]},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"}, {"role": "user", "content": "And?"}]}),
    ("/v1/chat/MODEL", {"prompt": "Hello.", "max_tokens": 4}),
    ("/v1/chat/MODEL", _CHAT | {"stream": True}),
    ("/v1/completions", {"prompt": "Hello", "max_tokens": 4}),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 4, "stream": True, "logprobs": 1}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 2, "echo": True, "min_tokens": 1}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 1, "prompt_logprobs": 1}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
    ("/v1/embeddings", {"input": [[1, 2], [3]], "dimensions": 4}),
    ("/v1/rerank", {"query": "a", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}),
    ("/v1/score", {"text_1": "a", "text_2": ["a", "b"]}),
    ("/tokenize", {"prompt": "Hello", "add_special_tokens": True, "return_token_strs": True}),
    ("/v1/tokenize", {"messages": _CHAT["messages"], "add_generation_prompt": False}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)  # fmt: skip


class Raw(str):
    """JSON that is written as it stands."""


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1e308, -0.0, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**30, 0.1, 1e-300, "",
    " ", "a", "\0", "\ud800", "\udfff\ud83d", "😀" * 3, "e\u0301" * 20, "\u202e\u2066", "\ufeff", "a" * 70_000,
    "%s%n{}{{0}}", "../../x", "<|end|><|system|>", "{% raw %}{{ 1/0 }}", "\\u0000", "\r\nX: y", "true", "1", "NaN",
    [], {}, [[]], [{}], [None], [0], [""], [1, "a"], {"": ""}, {"a": {"a": {"a": []}}}, {"type": "text"}, {"text": 1},
    {"type": "function"}, ["a"] * 2_100, [1] * 5_000, Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"),
    Raw("-1e999"), Raw("-0"), Raw("1E400"), Raw("0." + "3" * 400), Raw("9" * 400), Raw("9" * 5_000), Raw("01"),
    Raw("+1"), Raw(".5"), Raw("1."), Raw("0x10"), Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\x"'), Raw("'a'"),
    Raw("[" * 200 + "]" * 200), Raw("[" * 5_000), Raw('{"a":' * 150 + "1" + "}" * 150), Raw("undefined"),
    Raw('{"a":1,"a":2}'), Raw("[1,]"), Raw("/* */ 1"), Raw(""),
)  # fmt: skip
_KEYS = (
    "a", "", "model", "messages", "prompt", "stream", "n", "best_of", "\0", "\ud800", "a" * 3_000, "max_tokens",
    "functions", "Model", "stream_options", "guided_json", "extra_body", "__class__", "user", "logprobs", "input",
    "top_k", "stop", "reasoning_effort", "min_tokens", "ignore_eos", "tools", "tool_choice", "response_format",
    "structured_outputs",
)  # fmt: skip
_MEDIA = (
    "application/json", "application/json; charset=utf-8", "application/json; charset=utf-16", "text/json",
    "text/plain", "application/JSON", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "",
    "json", "a/b/c;;=", "*/*",
)  # fmt: skip
_CHARSETS = (
    "utf-8",
    "latin-1",
    "utf-16",
    "utf-7",
    "idna",
    "punycode",
    "undefined",
    "rot13",
    "zlib",
    "cp037",
    "a" * 99,
    "\xff",
)
_MORE = (
    "Content-Encoding: gzip", "X-Request-Timeout: nan", "Last-Event-ID: 1.2", "X-Session-Id: \xff",
    "Accept-Encoding: *", "Expect: 100-continue",
)  # fmt: skip


def dumps(value: Any) -> str:
    """JSON, with what is Raw as it stands."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{dumps(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    return json.dumps(value)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a value, without itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for k, v in items:
        found += [(*at, k), *_places(v, (*at, k))]
    return found


def _value(r: random.Random) -> Any:
    return copy.deepcopy(r.choice(_VALUES))  # the next change may be within it


def change(value: dict[str, Any], r: random.Random) -> None:
    """Change one place of a body."""
    places = _places(value)
    if not places or r.random() < 0.25:
        value[r.choice(_KEYS)] = _value(r)
        return
    *path, last = r.choice(places)
    owner: Any = value
    for step in path:
        owner = owner[step]
    match r.randrange(6):
        case 0:
            del owner[last]
        case 1:
            owner[last] = [owner[last]] * r.choice((1, 2, 5, 17, 130))
        case 2:
            owner[last] = {r.choice(_KEYS): owner[last]}
        case 3 if isinstance(owner, dict):
            owner[r.choice(_KEYS)] = owner.pop(last)
        case _:
            owner[last] = _value(r)


def _spoil(data: bytes, r: random.Random) -> bytes:
    """Change the bytes of a body."""
    at = r.randrange(len(data) + 1)
    match r.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([r.randrange(256)]) + data[at + 1 :]
        case 2:
            return b"\xef\xbb\xbf" + data
        case 3:
            return data.decode("latin-1").encode("utf-16")
        case 4:
            return data + r.choice((b"{}", b"\0", b" \n", b",", b"]"))
        case 5:
            return data[:at] + r.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\\", b'"')) + data[at:]
        case 6:
            return data[:at] + data[:at] + data[at:]
        case _:
            return r.choice((b"", b"null", b"[]", b'"a"', b"0", b"{", b"\0" * 10, b"{}" * 100))


def _query(r: random.Random) -> str:
    names = (
        "max_tokens",
        "temperature",
        "stop",
        "seed",
        "top_p",
        "priority",
        "stream",
        "prompt",
        "a",
        "",
        "n",
        "model",
    )
    values = (
        "4",
        "0.5",
        "",
        "x",
        "NaN",
        "1e999",
        "-1",
        "9" * 50,
        "true",
        "%00",
        "%ff",
        "%F0%9F%98%80",
        "1_0",
        " 1",
        "%20",
    )
    return "?" + "&".join(f"{r.choice(names)}={r.choice(values)}" for _ in range(r.randint(1, 4))).replace(" ", "+")


def make(seed: int, number: int, without: frozenset[int] = frozenset()) -> Case:
    """Case `number`: a body with up to four changes, one in four of them in its bytes or in its head."""
    r = rng(seed, KIND, number)
    path, base = r.choice(BASES)
    model = r.choice(MODELS)
    path = path.replace("MODEL", model)
    value = json.loads(json.dumps(base if path.endswith(f"/{model}") else base | {"model": model}))
    edits = r.randint(1, 4)
    media, data, more = "application/json", b"", ""
    late: list[tuple[int, random.Random]] = []
    for i in range(edits):
        e = rng(seed, KIND, number, i)
        if i in without:
            continue
        if e.random() < 0.75:
            change(value, e)
        else:
            late.append((e.randrange(4), e))
    data = dumps(value).encode("utf-8", "surrogatepass")
    for how, e in late:
        match how:
            case 0:
                media = e.choice(_MEDIA)
            case 1:
                path = f"/v1/chat/{model}" + _query(e)
                media = "text/plain; charset=" + e.choice(_CHARSETS)
            case 2:
                more = e.choice(_MORE) + "\r\n"
            case _:
                data = _spoil(data, e)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: fuzz-{KIND}-{seed}-{number}\r\n"
        f"Content-Type: {media}\r\n{more}Content-Length: {len(data)}\r\n\r\n"
    )
    return Case((head.encode("latin-1") + data,), edits=edits)
