"""The command line. `main` is the entry point of `headrace` and `python -m headrace`.

Modules are imported when their command is used, so that `headrace --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from headrace.cli import stdio
from headrace.errors import HeadraceError

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("headrace.cli.up", "Start everything on this machine and serve a model."),
    "deploy": ("headrace.cli.deploy", "Deploy a model, or change how it is deployed."),
    "delete": ("headrace.cli.deploy", "Delete a deployment and stop its replicas."),
    "adapters": ("headrace.cli.adapters", "List, add or remove LoRA adapters of a deployment."),
    "scale": ("headrace.cli.deploy", "Change how many replicas a deployment has."),
    "rollback": ("headrace.cli.revisions", "Go back to an earlier revision of a deployment."),
    "revisions": ("headrace.cli.revisions", "List the revisions of a deployment."),
    "status": ("headrace.cli.inspect", "Show deployments, replicas and proxies."),
    "nodes": ("headrace.cli.inspect", "Show the machines that take part."),
    "models": ("headrace.cli.models", "List, add or remove models of the catalog."),
    "logs": ("headrace.cli.inspect", "Print the log of a replica, a proxy, the head or the scheduler."),
    "explain": ("headrace.cli.explain", "Tell why a request went where it went."),
    "chat": ("headrace.cli.chat", "Talk to a model."),
    "token": ("headrace.cli.token", "Show the line with which another machine joins."),
    "join": ("headrace.cli.token", "Let this machine's command line command another's cluster."),
    "doctor": ("headrace.cli.doctor", "Look for what is wrong on this machine, and repair what can be."),
    "head": ("headrace.cli.serve", "Run the head controller."),
    "scheduler": ("headrace.cli.serve", "Run the scheduler of one machine."),
    "proxy": ("headrace.cli.serve", "Run one HTTP proxy."),
}


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """A reader that went away (`headrace logs … | head`) is its own business, and no failure of ours."""
    try:
        yield
    except BrokenPipeError:
        raise click.exceptions.Exit(0) from None


class _LazyGroup(click.Group):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _reader_may_leave():  # --help and --version
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_leave():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from headrace.cli.words import nearest

            ctx.fail(f"There is no command {args[0]!r}.{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from headrace import __version__

        click.echo(f"headrace {__version__}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    # --http-port is --http_port: one declaration, both spellings.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("-", "_"),
        "max_content_width": 100,
    },
    epilog="Every option is also a variable: --http_port is HEADRACE_HTTP_PORT. `headrace COMMAND --help` tells more.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
def cli() -> None:
    """Serve large language models across machines. Begin with: headrace up"""


def sole_error(error: BaseException) -> BaseException:
    """The one exception inside nested groups of one (task groups wrap what they raise), else `error` itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _run(args: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=None if args is None else list(args), prog_name="headrace", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as e:
        with suppress(OSError):
            e.show()
        return e.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BaseException as raised:
        error = sole_error(raised)
        if isinstance(error, KeyboardInterrupt):
            return 130
        if os.environ.get("HEADRACE_DEBUG") == "1" or not isinstance(error, Exception):
            raise
        stdio.tell(_sentence(error))
        return 1


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"The module {error.name!r} is not installed; run: pip install 'headrace[cpu]'"
    if isinstance(error, HeadraceError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        # What a command does with files it tells itself; what has no name is what it writes to.
        return stdio.cannot_write(error) if error.filename is None else f"{error.filename}: {error.strerror}."
    return f"Unexpected {type(error).__name__}: {error}. HEADRACE_DEBUG=1 shows where it came from."


def _foreign(args: Sequence[str]) -> str:
    """What of the command line and of our variables cannot be read as text; "" if all of it can."""
    ours = (f"{name}={value}" for name, value in os.environ.items() if name.startswith("HEADRACE_"))
    return next((word for word in (*args, *ours) if stdio.foreign_bytes(word)), "")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 an error told in one sentence, 2 wrong usage, 130 interrupted."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr when a peer goes away
    stdio.make_whole()
    if word := _foreign(sys.argv[1:] if args is None else args):
        stdio.tell(f"{os.fsencode(word)!r} is not UTF-8.")
        sys.exit(2)
    sys.exit(stdio.flushed(_run(args)))
