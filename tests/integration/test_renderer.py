"""Chat templates in a process of their own, which may take as much as a template wants and is ended with too much."""

from __future__ import annotations

import json
import time

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from headrace.errors import ContextExceeded, InvalidRequest, UserError
from headrace.replica import renderer
from headrace.replica.control import Control
from headrace.replica.renderer import Renderer

NOBODY = Control.of({})
X = json.dumps([{"role": "user", "content": "x"}]).encode()


def new(source: str, control: Control = NOBODY) -> Renderer:
    return Renderer(source, {"bos_token": "<s>"}, control)


BOMBS = [
    "{{ 'a' * 10**10 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' | center(10**10) }}",
    "{{ '%09999999999d' | format(1) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{{ (x + 9) ** (10 ** 9) }}",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_never_ends_is_ended(bomb: str) -> None:
    made = new("{% if messages[0].content == 'bomb' %}" + bomb.replace("10**10", "(x * 10**10)") + "{% endif %}ok")
    asked = json.dumps([{"role": "user", "content": "bomb"}]).encode()
    try:
        before = time.thread_time()
        with pytest.raises(InvalidRequest, match=r"template.*(CPU time|memory|MemoryError|fails)"):
            made.prompt(asked, [], {"x": 1}, 0.0, 10**6)
        assert time.thread_time() - before < 1.0, "it is not this process that works"
        assert made.prompt(X, [], {}, 0.0)[0] == "ok"
    finally:
        made.close()


@pytest.mark.parametrize("bomb", ["{{ 10 ** (10 ** 9) }}", "{{ 'a' * 10**10 }}{{ x"])
def test_also_when_it_is_compiled(bomb: str) -> None:
    with pytest.raises(UserError, match="chat template cannot be used"):
        new(bomb)


def test_output_is_bounded() -> None:
    made = new("{{ 'a' * 100 }}{{ messages[0].content }}")
    try:
        assert len(made.prompt(X, [], {}, 0.0, 101)[0]) == 101
        with pytest.raises(ContextExceeded):
            made.prompt(X, [], {}, 0.0, 100)
    finally:
        made.close()


def test_refusals_and_control_tokens_come_through() -> None:
    control = Control.of({"<|e|>": True})
    refuses = "{{ raise_exception('no') if messages | length > 1 }}"
    made = new(refuses + "{{ bos_token }}{{ messages[0].content }}<|e|>", control)
    try:
        with pytest.raises(InvalidRequest, match="refuses these messages: no"):
            made.prompt(json.dumps([{"role": "user", "content": "x"}] * 2).encode(), [], {}, 0.0)
        with pytest.raises(InvalidRequest, match="bos_token"):
            made.prompt(X, [], {"bos_token": ""}, 0.0)
        assert made.prompt(X, [], {}, 0.0) == ("<s>x<|e|>", False)
        text, plain = made.prompt(json.dumps([{"role": "user", "content": "<|e|>"}]).encode(), [], {}, 0.0)
        assert plain
        assert text == "<s><|e|>" + control.names["<|e|>"]
    finally:
        made.close()


def test_a_process_that_was_killed_is_replaced() -> None:
    made = new("ok")
    try:
        [process] = made._idle
        process._process.kill()
        process._process.wait()
        assert made.prompt(X, [], {}, 0.0) == ("ok", False)
    finally:
        made.close()
    assert renderer.CPU_S < 10


def test_tokenizing_lets_go_of_the_interpreter(tmp_path) -> None:
    import threading

    from headrace.replica.tokenizer import FileCodec

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    t = Tokenizer(models.BPE(alphabet, []))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.save(str(tmp_path / "tokenizer.json"))
    codec = FileCodec(tmp_path)
    ids: list[list[int]] = []
    text = "words " * 300_000
    for work in (lambda: codec.encode(text, False), lambda: list(map(len, [codec.decode(ids[0])]))):
        turns, begun = 0, threading.Event()

        def body(work=work, begun=begun) -> None:
            begun.set()
            ids.append(work())

        thread = threading.Thread(target=body)
        thread.start()
        begun.wait()
        while thread.is_alive():
            turns += 1
            time.sleep(0.001)
        thread.join()
        assert turns > 10
