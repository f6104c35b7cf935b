"""JSON that is long, deep or wrong: work for whoever reads a body."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from strangers.script import Hostile, Script, Where

MOST = 8 * 2**20  # the default of --max_body_bytes
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "x"}]


def body(**fields: Any) -> bytes:
    """A chat request with these fields."""
    return json.dumps({"model": "demo", "messages": MESSAGES, "max_tokens": 4} | fields).encode()


def with_raw(field: str, value: bytes, of: bytes | None = None) -> bytes:
    """The body `of` (a chat request) with one more field, whose JSON is given."""
    return (of or body())[:-1] + b', "%b": %b}' % (field.encode(), value)


def one(path: str, made: Callable[[], bytes]) -> Callable[[Where], Script]:
    """One request with one body."""
    return lambda where: Script.of(where.post(path, made()))


def many(count: int, width: int = 6) -> bytes:
    """Members of an object: names of `width` digits and a letter, zeros as values."""
    return b",".join(b'"f%0*d":0' % (width, i) for i in range(count))


def schema(value: bytes) -> bytes:
    return b'{"type":"json_schema","json_schema":{"name":"a","schema":%b}}' % value


def _messages(count: int, more: bytes) -> bytes:
    message = b'{"role":"user","content":"x"%b}' % more
    return b'{"model":"demo","max_tokens":4,"messages":[%b]}' % b",".join([message] * count)


def _tools(count: int, more: bytes) -> bytes:
    tool = b'{"type":"function","function":{"name":"f%d"%b}}'
    return with_raw("tools", b"[%b]" % b",".join(tool % (i, more) for i in range(count)))


def _called(count: int, calls: int, arguments: str) -> bytes:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call] * calls}
    return body(messages=[*MESSAGES, *([turn] * count), *MESSAGES])


def _b(name: str, origin: str, made: Callable[[], bytes], path: str = CHAT, quick: bool = False) -> Hostile:
    return Hostile(name, origin, one(path, made), quick=quick)


INPUTS = (
    _b("unknown-fields", "690,000 fields that no request has", lambda: body()[:-1] + b"," + many(690_000) + b"}",
       quick=True),
    _b("unknown-fields-small", "80,000 of them, 0.9 MB", lambda: body()[:-1] + b"," + many(80_000) + b"}"),
    _b("unknown-in-messages", "4,096 messages with 190 unknown fields each",
       lambda: _messages(4096, b"," + many(190, 3)), quick=True),
    _b("unknown-name", "one field with a name of 8 MB", lambda: with_raw("n" * (MOST - 200), b"0")),
    _b("duplicate-field", "one field 700,000 times",
       lambda: body()[:-1] + b"," + b",".join([b'"user":"a"'] * 700_000) + b"}"),
    _b("metadata", "metadata with 600,000 numbers", lambda: with_raw("metadata", b"{%b}" % many(600_000)), quick=True),
    _b("metadata-objects", "metadata with 250,000 objects in objects",
       lambda: with_raw("metadata", b"{%b}" % b",".join(b'"f%06d":{"a":{"b":{}}}' % i for i in range(250_000)))),
    _b("logit-bias", "logit_bias with 600,000 ids",
       lambda: with_raw("logit_bias", b"{%b}" % b",".join(b'"%d":1' % i for i in range(600_000)))),
    _b("logit-bias-digits", "logit_bias with one id of 8 million digits",
       lambda: with_raw("logit_bias", b'{"%b":1}' % (b"1" * (MOST - 200)))),
    _b("schema-enum", "a schema whose enum has 1.6 million entries", lambda: with_raw(
        "response_format", schema(b'{"enum":[%b]}' % b",".join([b"[[]]"] * 1_600_000))), quick=True),
    _b("schema-properties", "a schema with 400,000 properties", lambda: with_raw(
        "response_format", schema(b'{"properties":{%b}}' % b",".join(b'"f%06d":{}' % i for i in range(400_000))))),
    _b("schema-deep", "a schema of a million levels", lambda: with_raw(
        "response_format", schema(b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000))),
    _b("schema-in-text", "structured_outputs.json as text, of 8 MB", lambda: with_raw(
        "structured_outputs", b'{"json":"{\\"enum\\":[%b]}"}' % b",".join([b"[[]]"] * 1_600_000))),
    _b("choices-many", "structured_outputs.choice with 1.3 million texts", lambda: with_raw(
        "structured_outputs", b'{"choice":[%b]}' % b",".join([b'"abc"'] * 1_300_000))),
    _b("nesting", "four million opening brackets", lambda: with_raw("metadata", b"[" * 4_000_000)),
    _b("nesting-whole", "metadata of 150 levels, 25,000 times", lambda: with_raw(
        "metadata", b'{"a":[%b]}' % b",".join([b"[" * 150 + b"]" * 150] * 25_000))),
    _b("token-ids", "four million token ids as a prompt",
       lambda: b'{"model":"demo","prompt":[%b]}' % b",".join([b"1"] * 4_000_000), COMPLETE, quick=True),
    _b("token-ids-wrong", "four million token ids, the last of them a text",
       lambda: b'{"model":"demo","prompt":[%b,"a"]}' % b",".join([b"1"] * 4_000_000), COMPLETE),
    _b("token-lists", "a million lists of one token id",
       lambda: b'{"model":"demo","prompt":[%b]}' % b",".join([b"[1]"] * 1_000_000), COMPLETE),
    _b("detokenize-ids", "four million token ids to /detokenize",
       lambda: b'{"model":"demo","tokens":[%b]}' % b",".join([b"1"] * 4_000_000), "/detokenize", quick=True),
    _b("detokenize-wrong", "1.6 million texts as token ids to /detokenize",
       lambda: b'{"model":"demo","tokens":[%b]}' % b",".join([b'"a"'] * 1_600_000), "/detokenize"),
    _b("messages-many", "250,000 messages", lambda: _messages(250_000, b"")),
    _b("messages-wrong", "1.6 million messages that are none",
       lambda: b'{"model":"demo","messages":[%b]}' % b",".join([b'"a"'] * 1_600_000)),
    _b("content-parts", "a message of 270,000 parts", lambda: _messages(1, b',"content":[%b]' % b",".join(
        [b'{"type":"text","text":""}'] * 270_000))),
    _b("tools-many", "160,000 tools", lambda: _tools(160_000, b"")),
    _b("tools-large", "128 tools of 64 KB each", lambda: _tools(128, b',"parameters":{"enum":[%b]}' % b",".join(
        [b"[[]]"] * 12_000)), quick=True),
    _b("tool-calls", "a history of 500 messages with 128 calls each", lambda: _called(500, 128, "{}")),
    _b("tool-arguments", "a call with 8 MB of arguments", lambda: _called(1, 1, "[" * (MOST - 400))),
    _b("template-args", "8 MB of chat_template_kwargs",
       lambda: with_raw("chat_template_kwargs", b"{%b}" % many(600_000)), quick=True),
    _b("stop-many", "1.6 million stop strings", lambda: with_raw("stop", b"[%b]" % b",".join([b'"ab"'] * 1_600_000))),
    _b("number-long", "a seed of 8 million digits", lambda: with_raw("seed", b"9" * (MOST - 200)), quick=True),
    _b("number-precise", "a temperature of 8 million digits",
       lambda: with_raw("temperature", b"0." + b"3" * (MOST - 200))),
    _b("numbers-long", "metadata with 1,900 numbers of 4,300 digits", lambda: with_raw(
        "metadata", b"{%b}" % b",".join(b'"f%d":%b' % (i, b"7" * 4300) for i in range(1_900)))),
    _b("escapes", "a message of 1.3 million escapes",
       lambda: _messages(1, b',"name":"%b"' % (b"\\u0041" * 1_300_000))),
    _b("model-name", "the name of a model of 8 MB", lambda: b'{"model":"%b","messages":[]}' % (b"m" * (MOST - 200))),
    _b("function-name", "the name of a function of 8 MB", lambda: with_raw(
        "tools", b'[{"type":"function","function":{"name":"%b"}}]' % (b"f" * (MOST - 300)))),
    _b("spaces", "8 MB of spaces", lambda: b" " * (MOST - 100) + body()[:60]),
    _b("not-utf8", "8 MB, the last byte not UTF-8", lambda: b'{"model":"%b\xff"}' % (b"m" * (MOST - 200))),
)  # fmt: skip
