"""`headrace revisions`, `headrace rollback`: what a deployment was before, and back to that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.client import call_head, client_options
from headrace.cli.deploy import until_ready
from headrace.cli.inspect import to_json, width
from headrace.cli.kinds import Argument
from headrace.cli.tables import revision_lines
from headrace.core.state import Revision
from headrace.core.types import ClusterStatus

if TYPE_CHECKING:
    from headrace.rpc.admin import AdminClient


@click.command()
@click.argument("name", cls=Argument, metavar="MODEL")
@click.option("--json", "as_json", is_flag=True, help="All there is, for programs.")
@client_options
def revisions(name: str, as_json: bool, **params: Any) -> None:
    """List the revisions of a deployment that it can go back to, newest first."""

    async def action(admin: AdminClient) -> tuple[Sequence[Revision], ClusterStatus]:
        return await admin.revisions(name), await admin.status()

    found, status = call_head(params, action)
    if as_json:
        click.echo(to_json([asdict(r) for r in found]))
    else:
        click.echo("\n".join(revision_lines(found, status.replicas, time.time(), width())))


@click.command()
@click.argument("name", cls=Argument, metavar="MODEL")
@click.option("--to", type=click.IntRange(min=1), metavar="REVISION", help="Without it: the newest that differs.")
@click.option("--wait/--no_wait", default=True, show_default=True, help="Wait until it is ready.")
@client_options
def rollback(name: str, to: int | None, wait: bool, **params: Any) -> None:
    """Go back to an earlier revision of a deployment; `headrace revisions MODEL` lists them.

    It becomes a new revision with the model and the resources of the old one. Replicas change over as at any update;
    their number and the adapters stay.
    """

    async def action(admin: AdminClient) -> None:
        made = await admin.rollback(name, to or 0)
        d = made.deployment
        click.echo(f"{d.name} goes back to revision {d.repeats}, as revision {d.revision}.")
        if wait:
            await until_ready(admin, made)

    call_head(params, action)
