"""`headrace status`, `headrace nodes`, `headrace logs`: what there is."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.client import call_head, client_options
from headrace.cli.following import while_read
from headrace.cli.kinds import COUNT, Argument
from headrace.cli.options import Flag, option
from headrace.core.types import ClusterStatus

if TYPE_CHECKING:
    from headrace.rpc.admin import AdminClient


def to_json(value: Any, indent: int | None = 2) -> str:
    """A value of ours as JSON; sets become sorted lists."""
    return json.dumps(value, indent=indent, default=sorted)


def width() -> int:
    """Columns to fill: those of the terminal, 100 where there is none."""
    return max(60, shutil.get_terminal_size((100, 24)).columns)


@click.command()
@click.option("--watch", is_flag=True, help="Go on, and show every change.")
@click.option("--json", "as_json", is_flag=True, help="All there is, for programs.")
@client_options
def status(watch: bool, as_json: bool, **params: Any) -> None:
    """Show deployments, replicas and proxies, with phases and reasons."""
    from headrace.cli.tables import status_lines

    def render(now: ClusterStatus) -> str:
        if as_json:
            return to_json(asdict(now), indent=None if watch else 2)
        return "\n".join(status_lines(now, width()))

    async def once(admin: AdminClient) -> None:
        click.echo(render(await admin.status()))

    async def forever(admin: AdminClient) -> None:
        from headrace.cli.first_models import watch as changes

        await admin.status()  # a head that is not there is told at once
        on_terminal = sys.stdout.isatty() and not as_json
        if on_terminal:
            click.clear()
        async for now in changes(admin):
            # Home, then over what is there: clearing first would flicker.
            text = render(now)
            click.echo(f"\x1b[H{_over(text)}\x1b[J" if on_terminal else text if as_json else f"{text}\n")
            sys.stdout.flush()

    call_head(params, (lambda admin: while_read(forever(admin))) if watch else once)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="All there is, for programs.")
@client_options
def nodes(as_json: bool, **params: Any) -> None:
    """Show the machines that take part and what is free on them."""
    from headrace.cli.tables import node_lines

    now = call_head(params, lambda admin: admin.status())
    _print([to_json([asdict(n) for n in now.nodes])] if as_json else node_lines(now.nodes, width()))


@click.command()
@click.argument("part", cls=Argument)
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@option("tail", Flag("Lines to begin with.", COUNT), 100)
@client_options
def logs(part: str, follow: bool, tail: int, **params: Any) -> None:
    """Print the log of a PART: a replica's id or the beginning of it, head, scheduler, or a proxy's id."""

    async def action(admin: AdminClient) -> None:
        async for data in admin.read_logs(part, tail, follow):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    call_head(params, lambda admin: while_read(action(admin)))


def _over(text: str) -> str:
    return "".join(f"{line}\x1b[K\n" for line in text.splitlines())


def _print(lines: Sequence[str]) -> None:
    click.echo("\n".join(lines))
