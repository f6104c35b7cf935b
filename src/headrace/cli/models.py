"""`headrace models`: the catalog."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from headrace.cli.adapters import read_adapters
from headrace.cli.client import call_head, client_options
from headrace.cli.deploy import engine_args_json, model_options, read_template
from headrace.cli.inspect import to_json, width
from headrace.cli.kinds import Argument, Option
from headrace.cli.sources import resolve_source
from headrace.core.types import CatalogEntry, ModelSpec, Resources, check_name


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="All there is, for programs.")
@client_options
@click.pass_context
def models(ctx: click.Context, as_json: bool, **params: Any) -> None:
    """List the models of the catalog. A request for one of them deploys it."""
    ctx.obj = params
    if ctx.invoked_subcommand is None:
        _list(params, as_json)


def _list(params: dict[str, Any], as_json: bool) -> None:
    from headrace.cli.tables import model_lines

    entries = call_head(params, lambda admin: admin.models())
    click.echo(to_json([asdict(e) for e in entries]) if as_json else "\n".join(model_lines(entries, width())))


@models.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="All there is, for programs.")
@click.pass_obj
def list_(params: dict[str, Any], as_json: bool) -> None:
    """List the models of the catalog."""
    _list(params, as_json)


@models.command()
@click.argument("name", cls=Argument)
@click.option(
    "--source", cls=Option, required=True, help="A folder (on the node), hf://org/name or s3://bucket/prefix."
)
@click.option("--description", default="", help="A few words for `headrace models`.")
@click.option("--on_demand", is_flag=True, help="A request may start it where only listed models are started so.")
@model_options
@click.pass_obj
def add(params: dict[str, Any], name: str, source: str, description: str, on_demand: bool, **options: Any) -> None:
    """Add a model to the catalog, or change one."""
    model = ModelSpec(
        source=resolve_source(source),
        source_revision=options["revision"] or "",
        engine=options["engine"] or "auto",
        context_tokens=options["context"] or 0,
        chat_template=read_template(options["chat_template"]) or "",
        weight_format=options["weight_format"] or "",
        engine_args_json=engine_args_json(options["engine_arg"]) or "{}",
        task=options["task"] or "",
        tool_parser=options["tool_parser"] or "",
        reasoning_parser=options["reasoning_parser"] or "",
        trust_remote_code=bool(options["trust_remote_code"]),
    )
    resources = Resources(
        cpus=options["num_cpus"] or 0.0,
        memory_bytes=options["memory"] or 0,
        gpus=options["num_gpus"] or 0,
        gpu_memory_bytes=options["gpu_memory"] or 0,
    )
    adapters = read_adapters(options["adapter"]) or ()
    entry = CatalogEntry(check_name(name), model, resources, description, "added", adapters, on_demand)
    call_head(params, lambda admin: admin.add_model(entry))
    click.echo(f"{name} is in the catalog; `headrace deploy {name}` or a request for it starts it.")


@models.command()
@click.argument("name", cls=Argument)
@click.pass_obj
def remove(params: dict[str, Any], name: str) -> None:
    """Remove a model that was added to the catalog."""
    call_head(params, lambda admin: admin.remove_model(name))
    click.echo(f"{name} is no longer in the catalog.")
