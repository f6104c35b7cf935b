"""Samples of what runs, what waits and what is remembered, written down for the checker while a run goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterable
from typing import Any

import httpx

from chaos_harness.history import Recorder
from chaos_harness.system import System
from headrace.core.types import ClusterStatus, DeployRequest
from headrace.errors import HeadraceError

_EVERY_S = 1.0


async def watch_processes(system: System, recorder: Recorder) -> None:
    """The process table, beside what the head wants, once a second until cancelled."""
    while True:
        rows = await asyncio.to_thread(system.processes)
        t = recorder.now()
        status = await system.status()
        recorder.write("processes", "table", at=round(t, 3), rows=[r.as_event() for r in rows], wanted=wanted(status))
        await asyncio.sleep(_EVERY_S)


def wanted(status: ClusterStatus | None) -> dict[str, Any] | None:
    """What the head says that there should be; None if it says nothing."""
    if status is None:
        return None
    return {
        "epoch": status.epoch,
        "replicas": {
            p.status.replica_id: {
                "node": p.node_id, "phase": p.status.phase.value, "pid": p.status.pid,
                "deployment": p.status.deployment, "running": p.status.load.running, "waiting": p.status.load.waiting,
            }
            for p in status.replicas
        },
        "deployments": {d.deployment.name: d.deployment.replicas for d in status.deployments},
        "proxies": {p.proxy_id: p.pid for p in status.proxies},
    }  # fmt: skip


async def watch_queues(system: System, recorder: Recorder) -> None:
    """What the proxies count, every two seconds until cancelled."""
    url = f"http://{system.address[0]}:{system.http}/metrics"
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        while True:
            try:
                text = (await client.get(url)).text
                recorder.write(
                    "queues",
                    "metrics",
                    cap=system.size.max_waiting * system.size.proxies,
                    **read_metrics(text.splitlines()),
                )
            except (httpx.HTTPError, OSError):
                pass  # the one that was asked has just died
            await asyncio.sleep(2 * _EVERY_S)


_WANTED = {
    "headrace_requests_in_flight": "in_flight",
    "headrace_requests_unplaced": "unplaced",
    "headrace_failover_gap_seconds_count": "failovers",
    "headrace_retries_total": "retries",
}


def read_metrics(lines: Iterable[str]) -> dict[str, float]:
    """Sums over labels of the counts that the checker looks at."""
    found = dict.fromkeys(_WANTED.values(), 0.0)
    for line in lines:
        name = line.partition("{")[0].partition(" ")[0]
        if name in _WANTED:
            found[_WANTED[name]] += float(line.rpartition(" ")[2])
    return found


async def administer(system: System, recorder: Recorder, seed: int) -> None:
    """Deploy, change and delete deployments without replicas, without pause; all that was acknowledged must stay.

    The value of a write is the deployment's `max_replicas`, and its limit of context; None is "deleted".
    """
    rng = random.Random(f"admin {seed}")
    for number in itertools.count(1):
        name = f"ledger{rng.randint(1, 12)}"
        value = None if rng.random() < 0.2 else number % 997 + 1
        recorder.write("admin", "try", number=number, name=name, value=value)
        try:
            if value is None:
                await system.admin.delete(name)
            else:
                await system.admin.deploy(ledger_request(name, value))
            recorder.write("admin", "ack", number=number)
        except HeadraceError as e:
            known = e.kind in ("not_found", "invalid_request")
            recorder.write("admin", "refused" if known else "unknown", number=number, why=e.message[:200])
            if not known:
                await _answers(system)
                await read_ledger(system, recorder)  # what the next head remembers
        if number % 10 == 0:
            await read_ledger(system, recorder)
        await asyncio.sleep(rng.uniform(0.0, 0.5))


async def _answers(system: System) -> None:
    while await system.status() is None:  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.1)


def ledger_request(name: str, value: int) -> DeployRequest:
    return DeployRequest(
        model="builtin:demo", name=name, engine="simulated", min_replicas=0, max_replicas=value,
        engine_args_json=json.dumps({"kv_tokens": value}),
    )  # fmt: skip


async def read_ledger(system: System, recorder: Recorder) -> None:
    """Write down what the head remembers now."""
    begun = recorder.now()
    status = await system.status()
    if status is not None:
        found = {
            d.deployment.name: d.deployment.max_replicas
            for d in status.deployments
            if d.deployment.name.startswith("ledger")
        }
        recorder.write("admin", "read", begun=round(begun, 3), epoch=status.epoch, values=found)
