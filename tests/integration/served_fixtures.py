"""A proxy in this process with one real replica process behind it, and OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
from integration.proxy_fixtures import World, world
from integration.replica_fixtures import a_spec, running

from headrace.core.types import Endpoint, Route, RouteState


@asynccontextmanager
async def served(folder: Path, *, options: dict[str, object] | None = None, **model: object) -> AsyncIterator[World]:
    """A proxy with one replica of the simulated engine, deployed in this way."""
    spec = a_spec(options={"step_s": 0.0} | (options or {}), **model)
    async with running(spec, folder) as replica, world(0) as w:
        await replica.ready()
        w.head.show(Route("demo", RouteState.READY, "", (Endpoint(spec.replica_id, replica.address),), 0, 8192))
        await w.reachable(spec.replica_id)
        yield w
        await w.clean()


def client_of(w: World) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="none", max_retries=0)
