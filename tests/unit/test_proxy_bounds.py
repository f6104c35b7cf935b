"""What a body may cost: bounded in turns, in values and in sum."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.streams import Submit, TokenPrompt
from headrace.errors import HeadraceError, InvalidRequest, Overloaded, TooLarge, UnsupportedMedia
from headrace.proxy.bodies import FREE_BYTES, Bodies
from headrace.proxy.openai import ChatRequest, CompletionRequest
from headrace.proxy.parse import parse_json, parse_large_json
from headrace.proxy.scan import MAX_UNITS, Scan
from headrace.proxy.shapes import dumps, dumps_in_turns
from headrace.proxy.tasks import DetokenizeRequest
from headrace.proxy.ticket import Asked
from headrace.proxy.unpack import Unpack

TURN_S = 0.25

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 2**40)
    | st.text(max_size=8)
    | st.lists(st.integers(0, 2**33), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.just("prompt"), inner, max_size=4)
    ),
    max_leaves=12,
)


def rebuilt(body: bytes) -> Any:
    """What comes of a body that is looked through, with arrays as lists again."""
    scan = Scan(body, frozenset({"prompt", "other"}))
    for _ in scan.turns():
        pass
    data = json.loads(scan.rest())
    scan.put_back(data)
    return json.loads(json.dumps(data, default=list))


@given(st.dictionaries(st.sampled_from(["prompt", "other", "x", "y"]), json_values), st.sampled_from([None, 1]))
def test_nothing_changes_by_looking(data: dict[str, Any], indent: int | None):
    assert rebuilt(json.dumps(data, indent=indent).encode()) == data


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\\\ 1a').map(str.encode))
def test_any_bytes_come_to_an_end(body: bytes):
    scan = Scan(b'{"prompt":[' + body, frozenset({"prompt"}))
    for _ in scan.turns():
        pass
    scan.rest()


def test_ids_stay_small():
    scan = Scan(b'{"prompt":[[1,2],[3 , 4 ]],"other":[5],"max":[6]}', frozenset({"prompt", "other"}))
    list(scan.turns())
    data = json.loads(scan.rest())
    scan.put_back(data)
    assert data == {"prompt": [array("I", [1, 2]), array("I", [3, 4])], "other": array("I", [5]), "max": [6]}


USER = {"role": "user", "content": "x"}
CHAT = {"model": "m", "messages": [USER]}
MILLIONS: dict[str, tuple[Any, bytes, type[HeadraceError] | None]] = {
    "unknown fields": (ChatRequest, json.dumps(CHAT | {f"u{i}": i for i in range(300_000)}).encode(), TooLarge),
    "fewer of them": (ChatRequest, json.dumps(CHAT | {f"u{i}": i for i in range(60_000)}).encode(), InvalidRequest),
    "metadata": (ChatRequest, json.dumps(CHAT | {"metadata": dict.fromkeys(map(str, range(90_000)), 1)}).encode(),
                 InvalidRequest),
    "logit_bias": (ChatRequest, json.dumps(CHAT | {"logit_bias": dict.fromkeys(map(str, range(90_000)), 1)}).encode(),
                   InvalidRequest),
    "enum": (ChatRequest, b'{"model":"m","response_format":{"type":"json_schema","json_schema":{"name":"x","schema":'
             b'{"enum":[' + b"[[]]," * 800_000 + b"1]}}}}", TooLarge),
    "messages with errors": (
        ChatRequest, json.dumps(CHAT | {"messages": [USER | {f"u{i}": 1 for i in range(20)}] * 4096}).encode(),
        InvalidRequest),
    "schema as text": (ChatRequest, json.dumps(CHAT | {"structured_outputs": {"json": "[" * 4_000_000}}).encode(),
                       InvalidRequest),
    "wrong values": (ChatRequest, json.dumps(CHAT | {"temperature": "x" * 4_000_000}).encode(), InvalidRequest),
    "deep": (ChatRequest, b"[" * 4_000_000, InvalidRequest),
    "spaces": (ChatRequest, json.dumps(CHAT).encode() + b" " * 4_000_000, None),
    "escapes": (ChatRequest, json.dumps(CHAT | {"messages": [USER | {"content": "\n" * 2_000_000}]}).encode(), None),
    "messages": (ChatRequest, json.dumps(CHAT | {"messages": [USER] * 4096}).encode(), None),
    "ids": (CompletionRequest, b'{"model":"m","prompt":[' + b"1," * 2_000_000 + b"1]}", None),
    "lists of ids": (CompletionRequest, json.dumps({"model": "m", "prompt": [[70_000] * 5000] * 128}).encode(), None),
    "more ids": (DetokenizeRequest, b'{"model":"m","tokens":[' + b"1," * 2_000_000 + b"1]}", None),
}  # fmt: skip


@pytest.mark.parametrize("name", MILLIONS)
async def test_others_get_their_turn(name: str):
    model, body, error = MILLIONS[name]
    worst, last, over = 0.0, time.thread_time(), False

    async def others() -> None:
        nonlocal worst, last
        while not over:
            await asyncio.sleep(0)
            now = time.thread_time()
            worst, last = max(worst, now - last), now

    async def read() -> type[HeadraceError] | None:
        try:
            (await parse_large_json([body], model)).submits(Asked("id"))
        except HeadraceError as e:
            return type(e)
        return None

    watch = asyncio.create_task(others())
    await asyncio.sleep(0)
    assert await read() is error
    await asyncio.sleep(0)
    over = True
    await watch
    assert worst < TURN_S


async def test_large_and_small_bodies_come_to_the_same():
    ids = json.dumps({"model": "m", "prompt": [[1, 2, 3], [4]]}).encode()
    small, large = parse_json(ids, CompletionRequest), await parse_large_json([ids], CompletionRequest)

    def prompts(submits: list[Submit]) -> list[list[int]]:
        return [list(s.prompt.ids) for s in submits if isinstance(s.prompt, TokenPrompt)]

    assert prompts(small.submits(Asked("i"))) == prompts(large.submits(Asked("i"))) == [[1, 2, 3], [4]]
    for wrong in (
        b'{"model":"m","prompt":[1,99999999999]}',
        b'{"model":"m","prompt":[1,-1]}',
        b'{"model":"m","prompt":[1',
    ):
        with pytest.raises(InvalidRequest) as a:
            parse_json(wrong, CompletionRequest)
        with pytest.raises(InvalidRequest) as b:
            await parse_large_json([wrong], CompletionRequest)
        assert a.value.message == b.value.message


def test_the_bound_is_where_it_says():
    values = b'{"x":[' + b"1," * (MAX_UNITS - 9) + b"1]}"
    list(Scan(values).turns())
    with pytest.raises(TooLarge, match="too many values"):
        list(Scan(values[:-2] + b",1" * 9 + b"]}").turns())


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate", "raw"]), st.integers(1, 50))
def test_packed_bodies(data: bytes, how: str, step: int):
    raw = zlib.compressobj(wbits=-15)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "raw": lambda d: raw.compress(d) + raw.flush()}[how](
        data
    )
    if how == "raw" and packed[0] & 15 == 8 and (packed[0] << 8 | packed[1]) % 31 == 0:
        return  # looks like the other one
    unpack = Unpack.of(b"gzip" if how == "gzip" else b"deflate")
    assert unpack
    pieces = [packed[i : i + step] for i in range(0, len(packed), step)]
    out = [part for i, p in enumerate(pieces) for part in unpack.add(p, i == len(pieces) - 1)]
    assert b"".join(out) == data


def test_a_bomb_comes_in_pieces():
    unpack = Unpack.of(b" GZIP ")
    assert unpack
    parts = [len(p) for p in unpack.add(gzip.compress(bytes(20_000_000)), True)]
    assert max(parts) <= 128 * 1024
    assert sum(parts) == 20_000_000


def test_what_is_not_packed_as_it_says():
    assert Unpack.of(None) is Unpack.of(b"identity") is None
    for name in (b"br", b"zstd", b"gzip, gzip", b"compress"):
        with pytest.raises(UnsupportedMedia, match=name.decode()):
            Unpack.of(name)
    good = gzip.compress(b"hello")
    for data in (good[:-3], b"hello", b"", good + good, good + b"x"):
        unpack = Unpack.of(b"gzip")
        assert unpack
        with pytest.raises(InvalidRequest, match="gzip"):
            list(unpack.add(data, True))


MB = 1024 * 1024


async def test_bodies_are_bounded_in_sum_and_by_caller():
    bodies = Bodies(8 * MB)
    first, second, third = (bodies.begin(c) for c in ("a", "b", "c"))
    first.set(4 * MB)
    with pytest.raises(Overloaded, match="Your other requests") as e:
        bodies.begin("a").set(MB)
    assert e.value.retry_after_s
    bodies.begin("a").set(FREE_BYTES)
    second.set(4 * MB)
    with pytest.raises(Overloaded, match="Too many large requests"):
        third.set(MB)
    second.release()
    second.release()
    third.set(MB)
    first.release()
    third.release()
    assert bodies.held_bytes == 0


async def test_slow_bodies_give_way():
    bodies = Bodies(8 * MB)
    now = 0.0
    bodies._clock = lambda: now  # type: ignore[method-assign]
    ended: list[str] = []
    for caller in "ab":
        held = bodies.begin(caller)
        held.set(4 * MB)
        held.stop_reading = lambda caller=caller: ended.append(caller)
    now = 100.0
    quick = bodies.begin("c")
    quick.set(MB)
    assert ended == ["a"], "as few as make room"


VALUES = {
    "object": "list",
    "tokens": list(range(50_000)),
    "data": [{"text": "a", "tokens": ("x",) * 30_000}],
    "usage": {},
}


async def test_long_answers_are_encoded_in_turns():
    turns, over = 0, False

    async def others() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    watch = asyncio.create_task(others())
    assert await dumps_in_turns(VALUES) == dumps(VALUES)
    assert await dumps_in_turns({"object": 1, "data": iter([1, "a"])}) == b'{"object":1,"data":[1,"a"]}'
    assert await dumps_in_turns({"object": 1, "data": iter([])}) == b'{"object":1,"data":[]}'
    over = True
    await watch
    assert turns >= 5
