"""vLLM's own parsers behind our contract: what they take out of an answer, however it is cut into pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from headrace.errors import UserError
from headrace.replica.engine import Delta, Parsing

pytest.importorskip("vllm", reason="runs in an environment of its own: make test-vllm")

from headrace.replica.engines.vllm_parsers import Parsers, check_before_import, check_registered, names_in

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch, when vLLM imports it

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "mill", "days": 3}}\n</tool_call>'


@pytest.fixture(scope="module")
def llm() -> Any:
    """What the parsers ask of an engine: a tokenizer, here one of bytes with the marks that they look for."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        tokenizer.add_tokens([AddedToken(mark)])
    return SimpleNamespace(get_tokenizer=lambda: PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def read(llm: Any, tool: str, reasoning: str, text: str, size: int, tools: Any = TOOLS) -> Delta:
    """Everything that a parser makes of `text`, given `size` tokens at a time."""
    parser = Parsers(tool, reasoning, llm, None).new(Parsing(tools, (1, 2)))
    assert parser is not None
    tokenizer = llm.get_tokenizer()
    ids: list[int] = tokenizer.encode(text)
    deltas = [parser.push(tokenizer.decode(ids[i : i + size]), ids[i : i + size]) for i in range(0, len(ids), size)]
    deltas.append(parser.finish())
    calls = [c for d in deltas for c in d.tool_calls]
    return Delta("".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), tuple(calls))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_taken_out(llm: Any, size: int) -> None:
    found = read(llm, "hermes", "", f"Let me look. {CALL}", size)
    assert found.text.strip() == "Let me look."
    assert "".join(c.name for c in found.tool_calls) == "weather"
    assert json.loads("".join(c.arguments for c in found.tool_calls)) == {"place": "mill", "days": 3}
    assert {c.index for c in found.tool_calls} == {0}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_reasoning_comes_before_the_answer(llm: Any, size: int) -> None:
    found = read(llm, "", "deepseek_r1", "water turns it</think>The wheel turns.", size, tools=())
    assert found.reasoning.strip() == "water turns it"
    assert found.text.strip() == "The wheel turns."


def test_both_together(llm: Any) -> None:
    found = read(llm, "hermes", "deepseek_r1", f"it asks for weather</think>{CALL}", 1)
    assert found.reasoning.strip() == "it asks for weather"
    assert "".join(c.name for c in found.tool_calls) == "weather"


def test_without_tools_nothing_is_taken_for_a_call(llm: Any) -> None:
    assert Parsers("hermes", "", llm, None).new(Parsing((), (1,))) is None


def test_features(llm: Any) -> None:
    assert Parsers("", "", llm, None).features == frozenset()
    assert Parsers("hermes", "deepseek_r1", llm, None).features == {"tools", "tool_parser", "reasoning_parser"}


@pytest.mark.parametrize("check", [check_registered, lambda tool, reasoning: check_before_import(tool, reasoning, {})])
@pytest.mark.parametrize(
    ("tool", "reasoning", "said"),
    [
        ("hermees", "", "vLLM has no tool parser 'hermees': did you mean 'hermes'?"),
        ("", "deepseek_r2", "vLLM has no reasoning parser 'deepseek_r2': did you mean 'deepseek_r1'?"),
    ],
)
def test_unknown_parsers_are_named(check: Callable[[str, str], None], tool: str, reasoning: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check(tool, reasoning)
    assert caught.value.message == said


def test_names_are_read_without_importing_vllm() -> None:
    """Both tables, whole: a later vLLM that keeps them elsewhere is noticed here."""
    import vllm
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    package = Path(vllm.__file__).parent
    assert names_in(package / "tool_parsers" / "__init__.py") == set(ToolParserManager.list_registered())
    assert names_in(package / "reasoning" / "__init__.py") == set(ReasoningParserManager.list_registered())
    code = (
        "import sys; from headrace.replica.engines.vllm_parsers import check_before_import as check\n"
        "check('hermes', 'deepseek_r1', {}); check('', 'mine', {'reasoning_parser_plugin': 'x'})\n"
        "assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_parser_that_does_not_fit_the_model_is_said_at_the_start(llm: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = SimpleNamespace(get_tokenizer=lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))
    with pytest.raises(UserError, match="The parser deepseek_r1 does not fit this model: "):
        Parsers("", "deepseek_r1", bare, None)
