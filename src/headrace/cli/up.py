"""`headrace up`: everything on this machine, in the foreground."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from headrace.cli.options import build, field_names, settings_options
from headrace.settings import HeadSettings, SchedulerSettings, UpSettings


def explicit_flags(cls: type, given: Mapping[str, Any], leave_out: tuple[str, ...]) -> list[str]:
    """What of `given` is an option of `cls`, as the command line of a child."""
    flags: list[str] = []
    for name in field_names(cls):
        value = given.get(name)
        if name in leave_out or value is None or value is False:
            continue
        if isinstance(value, tuple):
            flags += [f"--{name}={one}" for one in value]
            continue
        flags.append(f"--{name}" if value is True else f"--{name}={value}")
    return flags


@click.command()
@settings_options(UpSettings)
@click.pass_context
def up(ctx: click.Context, config: Path | None, **params: Any) -> int:
    """Start everything on this machine and serve a model. Ctrl-C ends it all."""
    from headrace.cli.system import run

    settings = build(UpSettings, params)
    given = {
        name: value
        for name, value in params.items()
        if ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
    }
    # A default must not hide what [head] and [scheduler] of the file say, so only what was said is passed on.
    common = [f"--state_dir={settings.state_dir}"] + ([f"--config={config}"] if config else [])
    head = common + explicit_flags(HeadSettings, given, ("state_dir",))
    scheduler = common + explicit_flags(SchedulerSettings, given, ("state_dir",))
    reason = asyncio.run(run(settings, head, scheduler))
    return 130 if reason == "SIGINT" else 0
