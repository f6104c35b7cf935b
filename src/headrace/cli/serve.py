"""`headrace head`, `headrace scheduler`, `headrace proxy`: one long-lived part in this process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from headrace.cli.options import build, settings_options
from headrace.errors import UserError
from headrace.process import forbid_core_dumps, stand_by
from headrace.settings import HeadSettings, ProxySettings, SchedulerSettings


def _serve(part: str, log_level: str, start: Callable[[], Coroutine[Any, Any, object]]) -> None:
    from headrace import log

    log.setup(part, log_level)
    if sys.platform == "win32":
        raise UserError("Headrace runs on Linux and macOS.")
    import uvloop

    forbid_core_dumps()
    uvloop.run(start())


def _pass_on(config: Path | None) -> None:
    # The head's proxies read their own table of the same file.
    if config is not None:
        os.environ["HEADRACE_CONFIG"] = str(config)


@click.command()
@settings_options(HeadSettings)
def head(config: Path | None, **params: Any) -> None:
    """Run the head controller, which keeps its HTTP proxies alive."""
    settings = build(HeadSettings, params)
    _pass_on(config)
    from headrace.head import controller

    _serve("head", settings.log_level, lambda: controller.run(settings))


@click.command()
@settings_options(SchedulerSettings)
def scheduler(config: Path | None, **params: Any) -> None:
    """Run the scheduler of one machine: it joins the head and runs the replicas placed here.

    It may be started before the head, and waits for it.
    """
    settings = build(SchedulerSettings, params)
    if re.fullmatch(r"[^:\[\]]+:\d+", settings.head_address):
        host, _, port = settings.head_address.rpartition(":")
        raise UserError(f"--head_address is a host name alone; write --head_address={host} --port={port}.")
    from headrace.node import agent

    _serve("scheduler", settings.log_level, lambda: agent.run(settings))


@click.command()
@settings_options(ProxySettings)
def proxy(config: Path | None, **params: Any) -> None:
    """Run one HTTP proxy. Several may share a port; the head starts its own."""
    settings = build(ProxySettings, params)
    import uvloop  # noqa: F401  # before it stands by

    from headrace.proxy import app

    settings = replace(settings, proxy_id=stand_by() or settings.proxy_id)
    _serve("proxy", settings.log_level, lambda: app.run(settings))
