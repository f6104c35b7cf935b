"""Takes out of requests what Headrace's proxy refuses: python benchmarks/peers/routing_shim.py PORT UPSTREAM_PORT …

vllm-router writes parameters of other servers into every request (no_stop_trim, …), whatever the client said. In the
way of the other routers there is no such thing, so what it costs (a millisecond or two) is counted against vllm-router.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import uvicorn

TAKEN = {"model", "messages", "max_tokens", "stream", "stream_options", "ignore_eos", "temperature"}


class Shim:
    def __init__(self, upstream: str) -> None:
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=upstream, timeout=None, limits=limits)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if body:
            body = json.dumps({k: v for k, v in json.loads(body).items() if k in TAKEN}).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        async with self._client.stream(scope["method"], scope["path"], content=body, headers=headers) as r:
            kept = [(k, v) for k, v in r.headers.raw if k.lower() in (b"content-type", b"x-headrace-replica")]
            await send({"type": "http.response.start", "status": r.status_code, "headers": kept})
            async for data in r.aiter_raw():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def main(ports: list[int]) -> None:
    servers = []
    for port, upstream in zip(ports[::2], ports[1::2], strict=True):
        app = Shim(f"http://127.0.0.1:{upstream}")
        servers.append(uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level="warning")))
    await asyncio.gather(*(s.serve() for s in servers))


if __name__ == "__main__":
    asyncio.run(main([int(p) for p in sys.argv[1:]]))
