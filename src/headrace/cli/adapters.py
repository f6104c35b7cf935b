"""`headrace adapters`: the LoRA adapters of a deployment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.client import call_head, client_options
from headrace.cli.kinds import Argument
from headrace.core.adapters import public_name
from headrace.core.types import Adapter, ClusterStatus, DeploymentStatus
from headrace.errors import NotFound, UserError

if TYPE_CHECKING:
    from headrace.rpc.admin import AdminClient

_SIGN = "adapter_config.json"


def read_adapter(pair: str, revision: str = "") -> Adapter:
    """NAME=SOURCE as an adapter; a folder becomes absolute. UserError if that is not what it is."""
    name, equals, source = pair.partition("=")
    if not (name and equals and source):
        raise UserError(f"An adapter is given as NAME=SOURCE, not {pair!r}.")
    if "://" not in source:
        path = Path(os.path.abspath(Path(source).expanduser()))
        if path.is_dir() and not (path / _SIGN).is_file():
            raise UserError(f"{path} is not an adapter: it has no {_SIGN}.")
        if not path.exists() and not os.path.isabs(os.path.expanduser(source)):
            raise UserError(f"There is no folder {path}; give a folder with an adapter, or hf://org/name.")
        source = str(path)
    return Adapter(name, source, revision)


def read_adapters(pairs: Sequence[str]) -> tuple[Adapter, ...] | None:
    """All that --adapter gave; None without any."""
    return tuple(read_adapter(p) for p in pairs) or None


async def until_loaded(admin: AdminClient, made: DeploymentStatus, adapters: Sequence[Adapter]) -> None:
    """Wait until every ready replica of `made` has `adapters`. UserError if one of them cannot be loaded."""
    from headrace.cli.first_models import watch
    from headrace.cli.loading import new_progress
    from headrace.cli.waiting import Outcome, adapter_standing

    d = made.deployment
    if not adapters or d.replicas == 0:
        return
    progress = new_progress()
    try:
        async for status in watch(admin):
            standings = [adapter_standing(status, d.name, a) for a in adapters]
            progress.show(standings)
            for s in standings:
                if s.outcome in (Outcome.FAILED, Outcome.DELETED):
                    raise UserError(f"{s.name} cannot be served: {s.text.rstrip('.')}.")
            if all(s.outcome is Outcome.READY for s in standings):
                return
    finally:
        progress.close()


class _ListFirst(click.Group):
    """A group in which a word that is no command is the MODEL of `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListFirst, no_args_is_help=True, subcommand_metavar="[add | remove | list] MODEL ...")
def adapters() -> None:
    """List the LoRA adapters of a deployment, add or remove one. An adapter is called as MODEL:NAME."""


@adapters.command(name="list")
@click.argument("model", cls=Argument)
@click.option("--json", "as_json", is_flag=True, help="All there is, for programs.")
@client_options
def list_(model: str, as_json: bool, **params: Any) -> None:
    """List the adapters of a deployment."""
    from headrace.cli.inspect import to_json, width
    from headrace.cli.tables import adapter_lines

    status = call_head(params, lambda admin: admin.status())
    found = _deployment(status, model)
    if as_json:
        click.echo(to_json([asdict(a) for a in found.deployment.adapters]))
    else:
        click.echo("\n".join(adapter_lines(found, status.replicas, width())))


@adapters.command()
@click.argument("model", cls=Argument)
@click.argument("pair", cls=Argument, metavar="NAME=SOURCE")
@click.option("--revision", default="", help="Commit or tag of the adapter at its source.")
@click.option("--wait/--no_wait", default=True, show_default=True, help="Wait until it is loaded.")
@client_options
def add(model: str, pair: str, revision: str, wait: bool, **params: Any) -> None:
    """Add an adapter to a deployment, or give one that it has another source.

    SOURCE is a folder (on the node) or hf://org/name, in PEFT's format.
    """
    adapter = read_adapter(pair, revision)

    async def action(admin: AdminClient) -> None:
        made = await admin.add_adapter(model, adapter)
        if wait:
            await until_loaded(admin, made, [adapter])

    call_head(params, action)
    click.echo(f"{public_name(model, adapter.name)} can be called." if wait else f"{adapter.name} is added to {model}.")


@adapters.command()
@click.argument("model", cls=Argument)
@click.argument("name", cls=Argument)
@client_options
def remove(model: str, name: str, **params: Any) -> None:
    """Remove an adapter from a deployment; what runs with it finishes."""
    call_head(params, lambda admin: admin.remove_adapter(model, name))
    click.echo(f"{public_name(model, name)} can no longer be called.")


def _deployment(status: ClusterStatus, name: str) -> DeploymentStatus:
    found = next((d for d in status.deployments if d.deployment.name == name), None)
    if found is None:
        there = ", ".join(d.deployment.name for d in status.deployments) or "none"
        raise NotFound(f"No deployment {name[:100]!r}; deployed are: {there}.")
    return found
