"""What the head costs over the size of the cluster: the real head as a process, nodes and proxies that are simulated.

    python benchmarks/control_scale.py [--sizes 50,100,250,500,1000] [--plot FILE]
    python benchmarks/control_scale.py --show results/control_scale.json [--plot FILE]

A size is a number of nodes; ten replicas each, a deployment per five nodes, a proxy per twenty. For each size, with a
head and a state file of its own: (1) all deployments are made at once, until every replica is READY and every proxy has
all of them; (2) nothing happens; (3) replicas die one at a time, until every proxy has been told of each; (4) churn: a
minute's share of 1 % of the nodes is cut off for longer than the lease and returns, and of 1 % of the replicas dies;
(5) the head is killed and started again, until every proxy has all endpoints once more.

Nodes and proxies share the machine with the head, so its CPU time (user + system of its process) is the figure; the
times are upper bounds. A replica takes up to 1.5 s to be READY, which is in the time of (1).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import structlog
from simulated_cluster import Node, Watcher

from headrace import __version__
from headrace.cli.client import open_admin
from headrace.cli.endpoint import HeadEndpoint, read_endpoint
from headrace.core.route_delta import whole
from headrace.core.types import DeployRequest, ReplicaId
from headrace.process import Child, child_env, raise_open_files
from headrace.rpc import convert_head

PER_NODE, NODES_PER_DEPLOYMENT, NODES_PER_PROXY = 10, 5, 20
SPARE = 1.0  # CPUs of each node beyond its replicas', so that others have room for those of a lost one
LIMIT_S = 300.0
LEASE_S = 10.0
COLUMNS = {
    "nodes": "nodes",
    "replicas": "replicas",
    "deployments": "deploy- ments",
    "proxies": "proxies",
    "cold_s": "cold, s",
    "cold_cpu_s": "cold, CPU s",
    "restart_s": "restart, s",
    "restart_cpu_s": "restart, CPU s",
    "rest_cpu": "rest, % CPU",
    "churn_cpu": "churn, % CPU",
    "rss_mib": "memory, MiB",
    "rest_bytes_s": "rest, B/s a proxy",
    "churn_bytes_s": "churn, B/s a proxy",
    "table_bytes": "table, B",
    "death_bytes": "a death, B",
    "death_cpu_ms": "a death, CPU ms",
    "told_p50_ms": "told, ms: p50",
    "told_p99_ms": "p99",
    "told_max_ms": "max",
}


@dataclass
class Deaths:
    """When each replica died, and when each proxy was told."""

    proxies: int
    at: dict[ReplicaId, float] = field(default_factory=dict)
    told: defaultdict[ReplicaId, int] = field(default_factory=lambda: defaultdict(int))
    took_s: dict[ReplicaId, float] = field(default_factory=dict)

    def gone(self, replica_id: ReplicaId) -> None:
        if replica_id in self.at:
            self.told[replica_id] += 1
            if self.told[replica_id] == self.proxies:
                self.took_s[replica_id] = time.monotonic() - self.at[replica_id]

    def kill(self, node: Node, replica_id: ReplicaId) -> None:
        self.at[replica_id] = time.monotonic()
        node.die(replica_id)


class Head:
    """`headrace head` as a process; the next one finds the state and the ports of the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.child: Child | None = None

    async def start(self) -> HeadEndpoint:
        argv = [sys.executable, "-m", "headrace", "head", f"--state_dir={self.folder}", "--num_proxies=0"]
        argv += ["--http_port=0", "--node_port=0", "--grpc_port=0", f"--lease_s={LEASE_S:g}", "--log_level=WARNING"]
        child = self.child = Child.spawn(argv, env=child_env(), output=self.folder / "head.log")
        await until(lambda: (e := read_endpoint(self.folder)) is not None and e.pid == child.pid, "the head to start")
        self.process = psutil.Process(child.pid)
        endpoint = read_endpoint(self.folder)
        assert endpoint
        return endpoint

    def cpu_s(self) -> float:
        t = self.process.cpu_times()
        return t.user + t.system

    async def kill(self) -> None:
        if self.child:
            await self.child.kill_group()


async def until(what: Callable[[], object], why: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not what():
        if time.monotonic() > end:
            raise SystemExit(f"Waited {LIMIT_S:g} s in vain for {why}.")
        await asyncio.sleep(0.05)


async def measure(size: int, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    rng = random.Random(size)
    replicas, deployments = size * PER_NODE, max(1, size // NODES_PER_DEPLOYMENT)
    proxies = max(2, size // NODES_PER_PROXY)
    head = Head(folder)
    endpoint = await head.start()
    deaths = Deaths(proxies)
    nodes = [Node(endpoint.node, i, PER_NODE + SPARE, folder, rng) for i in range(size)]
    watchers = [Watcher(endpoint.grpc, i, deaths.gone, folder) for i in range(proxies)]
    watching = [asyncio.create_task(w.run()) for w in watchers]
    row: dict[str, float] = {"nodes": size, "replicas": replicas, "deployments": deployments, "proxies": proxies}

    def all_have(count: int) -> bool:
        return all(w.endpoints() == count for w in watchers)

    try:
        async with open_admin(endpoint.grpc, folder) as admin:
            for node in nodes:
                node.join()
            await until(lambda: all(n.epoch.highest for n in nodes), "the nodes to join")

            begun, cpu, ours = time.monotonic(), head.cpu_s(), time.process_time()
            each = [replicas // deployments + (i < replicas % deployments) for i in range(deployments)]
            gate = asyncio.Semaphore(16)

            async def deploy(number: int, count: int) -> None:
                async with gate:
                    await admin.deploy(
                        DeployRequest("/models/m", f"model-{number:03}", "simulated", count, count, cpus=1.0)
                    )

            await asyncio.gather(*(deploy(i, n) for i, n in enumerate(each)))
            await until(lambda: all_have(replicas), "all replicas to be READY everywhere")
            row |= {"cold_s": time.monotonic() - begun, "cold_cpu_s": head.cpu_s() - cpu}
            row["cold_driver_cpu_s"] = time.process_time() - ours
            await asyncio.sleep(3)

            row |= {f"rest_{k}": v for k, v in (await over(args.rest, head, watchers)).items()}

            before, sent, cpu = len(deaths.took_s), received(watchers), head.cpu_s()
            for _ in range(args.deaths):
                victims = [(n, r) for n in rng.sample(nodes, 20) for r in n.ready() if r not in deaths.at]
                deaths.kill(*rng.choice(victims))
                await asyncio.sleep(0.2)
            await until(lambda: len(deaths.took_s) == len(deaths.at), "every proxy to hear of every death")
            await until(lambda: all_have(replicas), "those that died to be READY again")
            took_ms = sorted(1000 * s for s in list(deaths.took_s.values())[before:])
            # Of each death: gone, and back. Rest costs are taken off.
            spent = head.cpu_s() - cpu - row["rest_cpu"] / 100 * args.deaths * 0.2
            row |= {
                "death_bytes": (received(watchers) - sent) / proxies / args.deaths,
                "death_cpu_ms": max(0.0, 1000 * spent / args.deaths),
                "told_p50_ms": statistics.median(took_ms),
                "told_p99_ms": took_ms[min(len(took_ms) - 1, int(0.99 * len(took_ms)))],
                "told_max_ms": took_ms[-1],
            }

            churning = asyncio.create_task(churn(args.churn, nodes, deaths, rng))
            row |= {f"churn_{k}": v for k, v in (await over(args.churn, head, watchers)).items()}
            await churning
            row["rss_mib"] = head.process.memory_info().rss / 2**20
            await until(lambda: all_have(replicas), "everything to be as it was")

            await head.kill()
            epochs = {w.table.epoch for w in watchers}
            begun = time.monotonic()
            await head.start()
            await until(
                lambda: all(w.table.epoch not in epochs for w in watchers) and all_have(replicas),
                "the next head to show everything",
            )
            row |= {"restart_s": time.monotonic() - begun, "restart_cpu_s": head.cpu_s()}
            row["table_bytes"] = convert_head.route_delta_to_pb(whole(watchers[0].table)).ByteSize()
            if any(w.gaps for w in watchers):
                raise SystemExit("A delta did not follow the one before it.")
            return row
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*(n.cut() for n in nodes))
        await asyncio.gather(*watching, return_exceptions=True)
        await head.kill()


def received(watchers: Sequence[Watcher]) -> int:
    return sum(w.received_bytes for w in watchers)


async def over(seconds: float, head: Head, watchers: Sequence[Watcher]) -> dict[str, float]:
    """The head's share of one CPU, and bytes per second to each proxy, for so long."""
    begun, cpu, sent = time.monotonic(), head.cpu_s(), received(watchers)
    await asyncio.sleep(seconds)
    passed = time.monotonic() - begun
    share = 100 * (head.cpu_s() - cpu) / passed
    return {"cpu": share, "bytes_s": (received(watchers) - sent) / passed / len(watchers)}


async def churn(seconds: float, nodes: Sequence[Node], deaths: Deaths, rng: random.Random) -> None:
    """1 % of the nodes a minute are cut off until their lease is over and return; 1 % of the replicas a minute die."""
    minutes = seconds / 60
    cuts, kills = max(1, round(0.01 * len(nodes) * minutes)), max(1, round(0.01 * len(nodes) * PER_NODE * minutes))
    victims = rng.sample([n for n in nodes if n.replicas], cuts)
    away = max(0.0, seconds - LEASE_S - 6)

    async def cut(node: Node, at_s: float) -> None:
        await asyncio.sleep(at_s)
        await node.cut()
        await asyncio.sleep(LEASE_S + 4)
        node.join()

    async def kill(at_s: float) -> None:
        await asyncio.sleep(at_s)
        node = rng.choice([n for n in nodes if n not in victims and n.ready()])
        deaths.kill(node, rng.choice(node.ready()))

    await asyncio.gather(
        *(cut(n, away * i / cuts) for i, n in enumerate(victims)),
        *(kill(seconds * i / kills) for i in range(kills)),
    )


def show(rows: Sequence[dict[str, float]]) -> None:
    print("| " + " | ".join(COLUMNS.values()) + " |")
    print("|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(f"{row[k]:,.0f}" if row[k] >= 100 else f"{row[k]:.3g}" for k in COLUMNS) + " |")


def plot(rows: Sequence[dict[str, float]], path: Path) -> None:
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figures: list[tuple[str, str, list[str]]] = [
        ("From cold, and after a kill of the head", "s", ["cold_s", "cold_cpu_s", "restart_s", "restart_cpu_s"]),
        ("CPU of the head", "% of one CPU", ["rest_cpu", "churn_cpu"]),
        ("A replica's death: until every proxy knows", "ms", ["told_p50_ms", "told_p99_ms", "told_max_ms"]),
        ("Memory of the head", "MiB", ["rss_mib"]),
        ("Bytes to each proxy", "B/s", ["rest_bytes_s", "churn_bytes_s"]),
        ("One change, and the whole table", "B", ["death_bytes", "table_bytes"]),
    ]
    labels = {
        "cold_s": "cold", "cold_cpu_s": "cold, CPU", "restart_s": "restart", "restart_cpu_s": "restart, CPU",
        "rest_cpu": "at rest", "churn_cpu": "churn of 1 % a minute", "told_p50_ms": "p50", "told_p99_ms": "p99",
        "told_max_ms": "max", "rss_mib": "resident", "rest_bytes_s": "at rest",
        "churn_bytes_s": "churn of 1 % a minute",
        "death_bytes": "a death and a return", "table_bytes": "whole table",
    }  # fmt: skip
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7))
    for axis, (title, unit, keys) in zip(axes.flat, figures, strict=True):
        for key in keys:
            axis.plot([r["nodes"] for r in rows], [r[key] for r in rows], marker="o", label=labels[key])
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.set_xlabel("nodes (10 replicas each)")
        axis.set_xlim(left=0)
        if "table_bytes" in keys:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    print(f"plot: {path}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="50,100,250,500,1000", help="numbers of nodes")
    parser.add_argument("--rest", type=float, default=10.0, help="seconds of rest that are measured")
    parser.add_argument("--churn", type=float, default=40.0, help="seconds of churn that are measured")
    parser.add_argument("--deaths", type=int, default=60, help="replicas that die one at a time")
    parser.add_argument("--out", type=Path, default=Path("results/control_scale.json"))
    parser.add_argument("--plot", type=Path, help="draw the curves into this file; needs matplotlib")
    parser.add_argument("--show", type=Path, help="measure nothing, show the figures of this file")
    args = parser.parse_args()
    if args.show:
        found: dict[str, Any] = json.loads(args.show.read_text())
    else:
        raise_open_files()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))  # a thousand schedulers' words
        print(f"Headrace {__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
        rows: list[dict[str, float]] = []
        for size in map(int, args.sizes.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(await measure(size, args, Path(folder)))
            print(f"{size} nodes: " + ", ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()), flush=True)
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.platform()}
        found = {"headrace": __version__, "machine": machine, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"figures: {args.out}")
    show(found["rows"])
    if args.plot:
        plot(found["rows"], args.plot)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
