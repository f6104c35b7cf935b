"""`headrace chat`: a conversation in the terminal, over the HTTP API."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli import stdio
from headrace.cli.client import STATE_DIR
from headrace.cli.endpoint import read_endpoint
from headrace.cli.kinds import AMOUNT, COUNT, Argument
from headrace.cli.options import Flag, option
from headrace.cli.words import size
from headrace.errors import HeadraceError, UserError
from headrace.settings import default_state_dir

if TYPE_CHECKING:
    from headrace.cli.conversation import Conversation

_URL = Flag("Base URL of the HTTP API; without it, what the head wrote into --state_dir.")
_MAX_LINE_BYTES = 8 * 2**20
_HELP = "/reset forgets the conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer."


@click.command()
@click.argument("model", cls=Argument)
@option("url", _URL)
@option("state_dir", STATE_DIR, default_state_dir())
@option("system", Flag("System message.", env="CHAT_SYSTEM", empty=True))
@option("temperature", Flag("0 always takes the likeliest token.", AMOUNT, env="CHAT_TEMPERATURE"))
@option("max_tokens", Flag("Bound on each answer.", COUNT, env="CHAT_MAX_TOKENS"))
def chat(model: str, url: str | None, state_dir: Path, system: str | None, **params: Any) -> int:
    """Talk to a MODEL. With input from a pipe, every line is a turn.

    An API key is taken from the variable HEADRACE_API_KEY. The exit code is 1 if any turn ended with an error.
    """
    from headrace.cli.conversation import Conversation

    endpoint = read_endpoint(state_dir)
    base = (url or (endpoint.url if endpoint else "http://127.0.0.1:8000")).rstrip("/").removesuffix("/v1")
    if "://" not in base:
        base = f"http://{base}"
    options = {k: v for k, v in params.items() if v is not None}
    with Conversation(base, model, os.environ.get("HEADRACE_API_KEY"), system, options) as conversation:
        try:
            conversation.check()
        except HeadraceError as e:
            raise UserError(e.message) from e
        return _interactive(conversation) if sys.stdin.isatty() else _piped(conversation)


def _piped(conversation: Conversation) -> int:
    failed = False
    for number in itertools.count(1):
        line = sys.stdin.buffer.readline(_MAX_LINE_BYTES + 1)
        if not line:
            return 1 if failed else 0
        if len(line) > _MAX_LINE_BYTES:
            raise UserError(f"Line {number} of the input is longer than {size(_MAX_LINE_BYTES)}.")
        try:
            text = _decoded(line, f"Line {number} of the input")
            if text.strip():
                _say(conversation.ask(text.strip()))
        except HeadraceError as e:
            failed = True
            stdio.tell(e.message)
    raise AssertionError("numbers have no end")


def _decoded(line: bytes, what: str) -> str:
    encoding = sys.stdin.encoding or "utf-8"
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as e:
        raise UserError(f"{what} is not {encoding.upper()}: byte {e.start + 1} is 0x{line[e.start]:02x}.") from e


def _say(pieces: Iterable[str]) -> None:
    for text in pieces:
        click.echo(text, nl=False)
    click.echo()


def _interactive(conversation: Conversation) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history

    click.echo(f"{conversation.model} at {conversation.base}. {_HELP}")
    code = 0
    while True:
        try:
            line = input("> ").strip()
            if stdio.foreign_bytes(line):
                raise UnicodeError
        except EOFError:
            click.echo()
            return code
        except UnicodeError:
            stdio.tell("What was typed is not in the terminal's encoding.")
            continue
        except KeyboardInterrupt:
            click.echo()  # the line is dropped, as in a shell
            continue
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return code
            case "/reset":
                conversation.reset()
                click.echo("Forgotten.")
            case "/help" | "/?":
                click.echo(_HELP)
            case _:
                if not _answered(conversation, line):
                    code = 1


def _answered(conversation: Conversation, line: str) -> bool:
    """Show the answer; False if it ended with an error."""
    try:
        _say(conversation.ask(line, _show_waiting))
    except KeyboardInterrupt:
        click.echo("\n[stopped]")
    except HeadraceError as e:
        stdio.tell(e.message)
        return False
    return True


def _show_waiting(text: str) -> None:
    # In place: the answer, or the next such line, is written over it.
    click.echo(f"\r\x1b[2K\x1b[2m{text}\x1b[0m" if text else "\r\x1b[2K", nl=False)
