"""`headrace deploy`, `headrace delete`, `headrace scale`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.adapters import read_adapters, until_loaded
from headrace.cli.client import call_head, client_options
from headrace.cli.kinds import AMOUNT, COUNT, ENGINE, FILE, SIZE, Argument, Option
from headrace.cli.options import Flag, option
from headrace.cli.sources import resolve
from headrace.core.catalog import TASKS, WEIGHT_FORMATS
from headrace.core.types import DeploymentStatus, DeployRequest
from headrace.errors import UserError

if TYPE_CHECKING:
    from headrace.rpc.admin import AdminClient

# Variables of their own: HEADRACE_NUM_GPUS says what a node has, not what a replica needs.
MODEL_FLAGS: dict[str, Flag] = {
    "num_cpus": Flag("CPUs that a replica needs.", AMOUNT, env="DEPLOY_NUM_CPUS"),
    "num_gpus": Flag("GPUs that a replica needs.", COUNT, env="DEPLOY_NUM_GPUS"),
    "memory": Flag("Memory that a replica needs, such as 4GiB.", SIZE, env="DEPLOY_MEMORY"),
    "gpu_memory": Flag("Free memory that each of its GPUs must have.", SIZE, env="DEPLOY_GPU_MEMORY"),
    "engine": Flag("Engine that runs the model.", ENGINE, env="DEPLOY_ENGINE"),
    "context": Flag("Bound on prompt and answer together, in tokens.", COUNT, env="DEPLOY_CONTEXT"),
    "weight_format": Flag(
        "Weights after conversion.", click.Choice([f for f in WEIGHT_FORMATS if f]), env="DEPLOY_WEIGHT_FORMAT"
    ),
    "engine_arg": Flag("KEY=VALUE for the engine; VALUE may be JSON. Repeatable.", many=True),
    "task": Flag("What the model is for.", click.Choice([t for t in TASKS if t]), env="DEPLOY_TASK"),
    "tool_parser": Flag("The engine's parser for this model's tool calls.", env="DEPLOY_TOOL_PARSER", empty=True),
    "reasoning_parser": Flag(
        "The engine's parser for this model's reasoning.", env="DEPLOY_REASONING_PARSER", empty=True
    ),
    "trust_remote_code": Flag(
        "Run code that comes with the weights. Only for a source that you trust.",
        switch=True,
        env="DEPLOY_TRUST_REMOTE_CODE",
    ),
    "chat_template": Flag("File with a Jinja chat template.", FILE, env="DEPLOY_CHAT_TEMPLATE"),
    "revision": Flag("Commit or tag of the weights at their source.", env="DEPLOY_REVISION", empty=True),
    "adapter": Flag("NAME=SOURCE of a LoRA adapter, called as MODEL:NAME. Repeatable; those given are all.", many=True),
}


def model_options(command: Any) -> Any:
    """Options that say how a model is run."""
    for name, flag in reversed(MODEL_FLAGS.items()):
        command = option(name, flag)(command)
    return command


def engine_args_json(pairs: Sequence[str]) -> str | None:
    """KEY=VALUE pairs as a JSON object; a VALUE that is JSON is taken as such. None without pairs."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--engine_arg takes KEY=VALUE, not {pair!r}.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return json.dumps(options, sort_keys=True) if options else None


def read_template(path: Path | None) -> str | None:
    """The text of --chat_template."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Cannot read the chat template {path}: {e}.") from e


def replica_range(replicas: int | None, low: int | None, high: int | None) -> tuple[int | None, int | None]:
    """Least and most replicas from N or --min/--max. UserError if they contradict each other."""
    if replicas is not None:
        if low is not None or high is not None:
            raise UserError("Give a number of replicas or --min and --max, not both.")
        return replicas, replicas
    if low is not None and high is not None and low > high:
        raise UserError(f"--min {low} is more than --max {high}.")
    return low, high


@click.command()
@click.argument("model", cls=Argument)
@click.option("--name", cls=Option, help="Public name; without it, the catalog's or the folder's.")
@option("replicas", Flag("Number of replicas.", COUNT, env="DEPLOY_REPLICAS"))
@option("min", Flag("Least number of replicas.", COUNT, env="DEPLOY_MIN"))
@option("max", Flag("Greatest number of replicas.", COUNT, env="DEPLOY_MAX"))
@model_options
@click.option("--wait/--no_wait", default=True, show_default=True, help="Wait until it is ready.")
@client_options
def deploy(model: str, name: str | None, wait: bool, **params: Any) -> None:
    """Deploy a model, or change how it is deployed.

    MODEL is a name of `headrace models`, a folder (on the node), hf://org/name or s3://bucket/prefix.
    """
    low, high = replica_range(params["replicas"], params["min"], params["max"])
    request = DeployRequest(
        model=resolve(model, must_exist=False),
        name=name or "",
        engine=params["engine"],
        min_replicas=low,
        max_replicas=high,
        cpus=params["num_cpus"],
        memory_bytes=params["memory"],
        gpus=params["num_gpus"],
        gpu_memory_bytes=params["gpu_memory"],
        context_tokens=params["context"],
        weight_format=params["weight_format"],
        engine_args_json=engine_args_json(params["engine_arg"]),
        source_revision=params["revision"],
        chat_template=read_template(params["chat_template"]),
        task=params["task"],
        tool_parser=params["tool_parser"],
        reasoning_parser=params["reasoning_parser"],
        trust_remote_code=params["trust_remote_code"] or None,
        adapters=read_adapters(params["adapter"]),
    )

    async def action(admin: AdminClient) -> None:
        made = await admin.deploy(request)
        if wait:
            await until_ready(admin, made)
            await until_loaded(admin, made, made.deployment.adapters)
        else:
            d = made.deployment
            click.echo(f"{d.name} is deployed (revision {d.revision}); `headrace status` shows how it loads.")

    call_head(params, action)


@click.command()
@click.argument("name", cls=Argument)
@client_options
def delete(name: str, **params: Any) -> None:
    """Delete a deployment and stop its replicas."""
    call_head(params, lambda admin: admin.delete(name))
    click.echo(f"{name} is deleted; its replicas finish what they have and stop.")


@click.command()
@click.argument("name", cls=Argument, metavar="MODEL")
@click.argument("replicas", type=COUNT, required=False)
@option("min", Flag("Least number of replicas.", COUNT, env="SCALE_MIN"))
@option("max", Flag("Greatest number of replicas.", COUNT, env="SCALE_MAX"))
@click.option("--wait/--no_wait", default=True, show_default=True, help="Wait until they are ready.")
@client_options
def scale(name: str, replicas: int | None, wait: bool, **params: Any) -> None:
    """Change how many REPLICAS a deployment has, or between which numbers."""
    low, high = replica_range(replicas, params["min"], params["max"])
    if low is None and high is None:
        raise UserError("Say how many: headrace scale MODEL N, or --min and --max.")

    async def action(admin: AdminClient) -> None:
        least, most = low, high
        if least is None or most is None:
            now = next((d.deployment for d in (await admin.status()).deployments if d.deployment.name == name), None)
            least = least if least is not None else min(now.min_replicas if now else 0, most or 0)
            most = most if most is not None else max(now.max_replicas if now else 0, least)
        made = await admin.scale(name, least, most)
        if wait and made.deployment.replicas:
            await until_ready(admin, made)
        else:
            click.echo(f"{name} has {made.deployment.replicas} replicas now.")

    call_head(params, action)


async def until_ready(admin: AdminClient, made: DeploymentStatus) -> None:
    """Show how a new revision comes up, to its end. UserError with the reason if it fails."""
    from headrace.cli.first_models import watch
    from headrace.cli.loading import new_progress
    from headrace.cli.waiting import Outcome, standing

    d = made.deployment
    if d.replicas == 0:
        click.echo(f"{d.name} is deployed (revision {d.revision}); its first request starts a replica.")
        return
    progress = new_progress()
    try:
        async for status in watch(admin):
            now = standing(status, d.name, d.revision, d.replicas)
            progress.show([now])
            if now.outcome is Outcome.READY:
                break
            if now.outcome is not Outcome.WAITING:
                raise UserError(f"{d.name} cannot be served: {now.text.rstrip('.')}.")
    finally:
        progress.close()
    click.echo(f"{d.name} is ready (revision {d.revision}).")
