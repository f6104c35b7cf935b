"""vLLM's parsers of tool calls and reasoning, as ours."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace.core.streams import ToolCall
from headrace.errors import UserError
from headrace.replica.engine import Delta, EngineRequest, OutputParser, Parsing
from headrace.replica.engines.vllm_args import brief


def check_before_import(tool: str, reasoning: str, given: Mapping[str, Any]) -> None:
    """UserError for a name that vLLM does not have, read from its sources: to import it takes 10 s.

    given: the engine's arguments. Says nothing where other names may come with a plugin, or the sources tell none.
    """
    spec = find_spec("vllm")
    plugins = [e for e in entry_points(group="vllm.general_plugins") if not e.value.startswith("vllm.")]
    if spec is None or not spec.origin or plugins:
        return
    package = Path(spec.origin).parent
    if known := names_in(package / "tool_parsers" / "__init__.py"):
        _check("tool", tool, known)
    if (known := names_in(package / "reasoning" / "__init__.py")) and not given.get("reasoning_parser_plugin"):
        _check("reasoning", reasoning, known)


def names_in(module: Path) -> set[str]:
    """The keys of the table of parsers that a module of vLLM's has; empty if it has none."""
    try:
        body = ast.parse(module.read_bytes()).body
    except (OSError, SyntaxError):
        return set()
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id.endswith("_PARSERS_TO_REGISTER"):
                return {str(k.value) for k in node.value.keys if isinstance(k, ast.Constant)}
    return set()


def check_registered(tool: str, reasoning: str) -> None:
    """UserError for a name that vLLM, with all of its plugins, does not have."""
    from vllm.reasoning import ReasoningParserManager  # pyright: ignore[reportMissingImports]
    from vllm.tool_parsers import ToolParserManager  # pyright: ignore[reportMissingImports]

    _check("tool", tool, ToolParserManager.list_registered())
    _check("reasoning", reasoning, ReasoningParserManager.list_registered())


class Parsers:
    """The parsers that a deployment names. UserError for one that does not fit the model."""

    def __init__(self, tool: str, reasoning: str, llm: Any, model_config: Any) -> None:
        self.features = frozenset({"tools", "tool_parser"} if tool else ()) | frozenset(
            {"reasoning_parser"} if reasoning else ()
        )
        self._class: Any = None
        self._reasoning_class: Any = None
        if not (tool or reasoning):
            return
        from vllm.parser import ParserManager  # pyright: ignore[reportMissingImports]

        self._model_config = model_config
        self._tokenizer = llm.get_tokenizer()
        make = ParserManager.get_parser
        # Without tools in a request, one that parses them may still take a form of theirs out of the text.
        self._class = make(tool or None, reasoning or None, enable_auto_tools=bool(tool))
        if reasoning:
            self._reasoning_class = make(None, reasoning, enable_auto_tools=False)
        named = " and ".join(n for n in (tool, reasoning) if n)
        try:
            self._class(self._tokenizer, [], model_config=model_config)
        except Exception as e:  # whatever a parser asks of a model's tokenizer
            raise UserError(f"The parser {named} does not fit this model: {brief(e)}") from e

    def guided(self, request: EngineRequest) -> dict[str, Any]:
        """What `add_request` is to be told besides, so that a form begins where reasoning ends."""
        if request.guide is None or self._reasoning_class is None:
            return {}
        if request.parsing is None:
            return {"reasoning_ended": True}  # nothing is taken out: the form is the whole answer's
        args = dict(request.parsing.template_args)
        return {"reasoning_parser_kwargs": {"chat_template_kwargs": args}} if args else {}

    def new(self, parsing: Parsing) -> OutputParser | None:
        """A new answer's parser; None where there is nothing to take out."""
        kind = self._class if parsing.tools else self._reasoning_class if self._class else None
        if kind is None:
            return None
        return _Parser(kind, self._tokenizer, self._model_config, parsing)


class _Parser:
    """One answer's."""

    def __init__(self, kind: Any, tokenizer: Any, model_config: Any, parsing: Parsing) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import (  # pyright: ignore[reportMissingImports]
            ChatCompletionRequest,
        )

        self.special_tokens = bool(parsing.tools)  # marks of calls often are some
        tools = [dict(t) for t in parsing.tools] or None
        self._request = ChatCompletionRequest(
            messages=[{"role": "user", "content": ""}],
            tools=tools,
            tool_choice="auto" if tools else "none",
            chat_template_kwargs=dict(parsing.template_args),
        )
        self._parser = kind(
            tokenizer, self._request.tools, model_config=model_config, chat_template_kwargs=dict(parsing.template_args)
        )
        self._prompt_ids: list[int] | None = list(parsing.prompt_ids)

    def push(self, text: str, ids: Sequence[int]) -> Delta:
        return self._parse(text, ids, finished=False)

    def finish(self) -> Delta:
        return self._parse("", (), finished=True)

    def _parse(self, text: str, ids: Sequence[int], *, finished: bool) -> Delta:
        prompt_ids, self._prompt_ids = self._prompt_ids, None
        m = self._parser.parse_delta(text, list(ids), self._request, prompt_ids, finished=finished)
        if m is None:
            return Delta()
        calls = tuple(_call(c) for c in m.tool_calls or ())
        return Delta(m.content or "", m.reasoning or "", calls)


def _call(c: Any) -> ToolCall:
    f = c.function
    return ToolCall(c.index, c.id or "", (f.name if f else "") or "", (f.arguments if f else "") or "")


def _check(what: str, name: str, known: Collection[str]) -> None:
    if name and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}."
        raise UserError(f"vLLM has no {what} parser {name!r}: {hint}")
