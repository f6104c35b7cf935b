"""A proxy as a user of Ray Serve writes it: a deployment that streams what an upstream streams.

    python ray_app.py PORT UPSTREAM [UPSTREAM …]      (in Ray's environment)

Prints "ready" and serves until its standard input ends.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse


@serve.deployment(num_replicas=1, max_ongoing_requests=2000, ray_actor_options={"num_cpus": 0.1})
class Proxy:
    def __init__(self, upstreams: list[str]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._client = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)
        self._upstreams = itertools.cycle(upstreams)

    async def __call__(self, request: Request) -> Any:
        body = await request.body()
        url = next(self._upstreams) + request.url.path
        asked = self._client.build_request("POST", url, content=body, headers={"content-type": "application/json"})
        answer = await self._client.send(asked, stream=True)
        kind = answer.headers["content-type"]
        if not kind.startswith("text/event-stream"):
            return Response(await answer.aread(), status_code=answer.status_code, media_type=kind)

        async def events() -> AsyncIterator[bytes]:
            async for data in answer.aiter_raw():
                yield data
            await answer.aclose()

        return StreamingResponse(events(), status_code=answer.status_code, media_type=kind)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Proxy.bind(sys.argv[2:]))
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
