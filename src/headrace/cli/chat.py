"""`headrace chat`: a conversation in the terminal, over the HTTP API."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.client import STATE_DIR
from headrace.cli.endpoint import read_endpoint
from headrace.cli.options import AMOUNT, COUNT, Flag, option
from headrace.errors import HeadraceError, UserError
from headrace.settings import default_state_dir

if TYPE_CHECKING:
    from headrace.cli.conversation import Conversation

_URL = Flag("Base URL of the HTTP API; without it, what the head wrote into --state_dir.")
_HELP = "/reset forgets the conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer."


@click.command()
@click.argument("model")
@option("url", _URL)
@option("state_dir", STATE_DIR, default_state_dir())
@option("system", Flag("System message.", env="CHAT_SYSTEM"))
@option("temperature", Flag("0 always takes the likeliest token.", AMOUNT, env="CHAT_TEMPERATURE"))
@option("max_tokens", Flag("Bound on each answer.", COUNT, env="CHAT_MAX_TOKENS"))
def chat(model: str, url: str | None, state_dir: Path, system: str | None, **params: Any) -> int:
    """Talk to a MODEL. With input from a pipe, every line is a turn.

    An API key is taken from the variable HEADRACE_API_KEY.
    """
    from headrace.cli.conversation import Conversation

    endpoint = read_endpoint(state_dir)
    base = (url or (endpoint.url if endpoint else "http://127.0.0.1:8000")).rstrip("/").removesuffix("/v1")
    if "://" not in base:
        base = f"http://{base}"
    options = {k: v for k, v in params.items() if v is not None}
    with Conversation(base, model, os.environ.get("HEADRACE_API_KEY"), system, options) as conversation:
        if not sys.stdin.isatty():
            return _piped(conversation)
        try:
            conversation.check()
        except HeadraceError as e:
            raise UserError(e.message) from e
        return _interactive(conversation)


def _piped(conversation: Conversation) -> int:
    failed = False
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            for text in conversation.ask(line.strip()):
                click.echo(text, nl=False)
            click.echo()
        except HeadraceError as e:
            failed = True
            click.echo(f"Error: {e.message}", err=True)
    return 1 if failed else 0


def _interactive(conversation: Conversation) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history

    click.echo(f"{conversation.model} at {conversation.base}. {_HELP}")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return 0
        except KeyboardInterrupt:
            click.echo()  # the line is dropped, as in a shell
            continue
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return 0
            case "/reset":
                conversation.reset()
                click.echo("Forgotten.")
            case "/help" | "/?":
                click.echo(_HELP)
            case _:
                _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    try:
        for text in conversation.ask(line, _show_waiting):
            click.echo(text, nl=False)
        click.echo()
    except KeyboardInterrupt:
        click.echo("\n[stopped]")
    except HeadraceError as e:
        click.echo(f"Error: {e.message}", err=True)


def _show_waiting(text: str) -> None:
    # In place: the answer, or the next such line, is written over it.
    click.echo(f"\r\x1b[2K\x1b[2m{text}\x1b[0m" if text else "\r\x1b[2K", nl=False)
