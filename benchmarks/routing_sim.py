"""Routing by simulation: the proxies' and replicas' own decisions, 64 replicas, several proxies with news that is late.

    python benchmarks/routing_sim.py [--replicas 64] [--proxies 8] [--seconds 60] [--rounds 3] [--sweep]

The decisions are the product's: core/affinity.py decides, proxy/prefixes.py knows what replicas hold, and
replica/prefixes.py says it. Simulated are the engines (steps of continuous batching, prefill in chunks, a prefix cache
of blocks that forgets the least recently used), the clients, and the delays of frames. `--sweep` varies the constants
of the formula. "could hit": with one cache for all that forgets nothing.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from routing_model import BLOCK, Engine, Replica, Request, Workload

from headrace.core import affinity
from headrace.core.affinity import NOTHING, Policy, Wish, decide
from headrace.core.route import Candidate
from headrace.core.types import Load
from headrace.core.waits import Mean
from headrace.proxy.prefixes import Prefixes as Known


@dataclass
class View:
    """What one proxy knows of one replica."""

    load: Load = field(default_factory=lambda: Load(max_running=128))
    known: Known = field(default_factory=Known)
    in_flight: int = 0
    queued: int = 0
    unseen: int = 0


@dataclass
class Outcome:
    ttft_p50_s: float
    ttft_p99_s: float
    hit_rate: float
    imbalance: float  # requests at the busiest replica, beside the mean
    could_hit: float
    running: float  # at a replica
    requests: int
    prefix_share: float
    decide_us: float


HEARTBEAT_S, WIRE_S = 0.75, 0.0005

Constants = tuple[float, float, float]  # WORTH, SPREAD, SLACK


class Run:
    """One policy on one workload."""

    def __init__(self, policy: Policy, kind: str, rate: float, seed: int, o: argparse.Namespace) -> None:
        self.policy, self.random = policy, Random(seed + 1)
        engine = Engine()
        self.replicas = [Replica(i, engine, o.proxies) for i in range(o.replicas)]
        self.views = [[View() for _ in self.replicas] for _ in range(o.proxies)]
        for view in itertools.chain(*self.views):
            view.known.kept = True
        self.usual = [Mean() for _ in range(o.proxies)]
        self.queues: list[deque[Request]] = [deque() for _ in range(o.proxies)]
        self.workload = Workload(kind, rate, Random(seed))
        self.events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.order = itertools.count()
        self.now, self.warm, self.seconds = 0.0, o.seconds / 3, o.seconds
        self.ttft: list[float] = []
        self.tokens, self.hits, self.could = 0, 0, 0
        self.ever: set[int] = set()
        self.turns = [itertools.count(p) for p in range(o.proxies)]
        self.running: list[float] = []
        self.balance: list[float] = []
        self.reasons: Counter[str] = Counter()
        self.decided_s, self.decisions = 0.0, 0

    def at(self, when: float, what: Callable[..., None], *args: object) -> None:
        heapq.heappush(self.events, (when, next(self.order), what, args))

    def go(self) -> Outcome:
        for r in self.workload.arrivals(self.seconds):
            self.at(r.at, self.arrive, r)
        for i, _ in enumerate(self.replicas):
            self.at(self.random.random() * HEARTBEAT_S, self.heartbeat, i)
        self.at(self.warm, self.look)
        while self.events:
            self.now, _, what, args = heapq.heappop(self.events)
            if self.now > self.seconds:
                break
            what(*args)
        self.ttft.sort()
        n = len(self.ttft)
        return Outcome(
            self.ttft[n // 2],
            self.ttft[int(n * 0.99)],
            self.hits / max(1, self.tokens),
            statistics.fmean(self.balance),
            self.could / max(1, self.tokens),
            statistics.fmean(self.running),
            n,
            self.reasons["prefix"] / max(1, sum(self.reasons.values())),
            1e6 * self.decided_s / max(1, self.decisions),
        )

    def look(self) -> None:
        counts = [len(r.waiting) + len(r.prefill) + len(r.ends) for r in self.replicas]
        self.running.append(statistics.fmean(counts))
        self.balance.append(max(counts) / max(1e-9, statistics.fmean(counts)))
        self.at(self.now + 0.25, self.look)

    def arrive(self, r: Request) -> None:
        r.number, r.proxy = next(self.order), self.random.randrange(len(self.views))
        self.usual[r.proxy].add(len(r.blocks))
        if self.queues[r.proxy] or not self.place(r):
            self.queues[r.proxy].append(r)

    def place(self, r: Request) -> bool:
        auto = self.policy is Policy.AUTO
        wish = Wish(r.blocks, self.usual[r.proxy].value) if auto else NOTHING
        begin = time.thread_time()
        candidates = [
            Candidate(
                replica.id,
                v.in_flight,
                v.load,
                queued=v.queued,
                unseen=v.unseen,
                matched=v.known.matched(wish.blocks),
            )
            for replica, v in zip(self.replicas, self.views[r.proxy], strict=True)
        ]
        d = decide(
            candidates,
            self.random.random(),
            self.random.random(),
            with_room=True,
            wish=wish,
            policy=self.policy,
            turn=next(self.turns[r.proxy]),
        )
        self.decided_s += time.thread_time() - begin
        self.decisions += 1
        if d is None:
            return False
        self.reasons[d.reason] += 1
        where = int(d.replica_id[1:])
        view = self.views[r.proxy][where]
        view.in_flight += 1
        view.queued += 1
        view.unseen += 1
        view.known.sent(r.number, wish.blocks)
        self.at(self.now + WIRE_S, self.submitted, where, r)
        return True

    def submitted(self, where: int, r: Request) -> None:
        replica = self.replicas[where]
        replica.take(r)
        self.at(self.now + WIRE_S, self.frame, r.proxy, where, replica.load(), replica.news[r.proxy], 1, 0, [])
        replica.news[r.proxy] = {}
        if not replica.stepping:
            self.step(where)

    def step(self, where: int) -> None:
        replica = self.replicas[where]
        replica.stepping = not replica.idle
        if replica.stepping:
            self.at(self.now + replica.begin_step(), self.stepped, where)

    def stepped(self, where: int) -> None:
        replica = self.replicas[where]
        first, last = replica.end_step()
        load = replica.load()
        for p, view in enumerate(v[where] for v in self.views):
            if view.in_flight:
                begun = sum(r.proxy == p for r in first)
                ended = [r for r in last if r.proxy == p]
                self.at(self.now + WIRE_S, self.frame, p, where, load, replica.news[p], 0, begun, ended)
                replica.news[p] = {}
        for r in first:
            if r.at >= self.warm:
                self.ttft.append(self.now + WIRE_S - r.at)
                self.tokens += r.tokens
                self.hits += r.cached
                self.could += BLOCK * sum(b in self.ever for b in r.blocks)
            self.ever.update(r.blocks)
        self.step(where)

    def heartbeat(self, where: int) -> None:
        replica = self.replicas[where]
        for p, view in enumerate(v[where] for v in self.views):
            if not view.in_flight:
                self.frame(p, where, replica.load(), replica.news[p], 0, 0, [])
                replica.news[p] = {}
        self.at(self.now + HEARTBEAT_S, self.heartbeat, where)

    def frame(
        self, p: int, where: int, load: Load, news: dict[int, bool], seen: int, begun: int, ended: list[Request]
    ) -> None:
        view = self.views[p][where]
        view.load = load
        view.unseen -= seen
        view.queued -= begun
        view.in_flight -= len(ended)
        if news:
            view.known.told([b for b, held in news.items() if held], [b for b, held in news.items() if not held])
        for r in ended:
            view.known.ended(r.number)
            if (more := self.workload.follow(r, self.now)) and more.at < self.seconds:
                self.at(more.at, self.arrive, more)
        queue = self.queues[p]
        while queue and self.place(queue[0]):
            queue.popleft()


# Requests per second and replica: so many that the engines are busy without any cache, and none is overwhelmed.
WORKLOADS = {"chat": 5.5, "shared prompts": 4.5, "nothing shared": 9.0, "hot spot": 8.0, "long answers": 6.0}


def table(rows: Mapping[tuple[str, str], list[Outcome]]) -> None:
    heads = f"{'TTFT p50':>10}{'p99':>10}{'hits':>7}{'could':>8}{'running':>9}{'busiest':>9}{'µs':>6}"
    print(f"{'workload':16}{'policy':16}{heads}")
    for (kind, policy), outcomes in rows.items():

        def mid(name: str, outcomes: list[Outcome] = outcomes) -> float:
            return statistics.median(getattr(x, name) for x in outcomes)

        ttft = f"{1000 * mid('ttft_p50_s'):7.0f} ms{1000 * mid('ttft_p99_s'):7.0f} ms"
        hits = f"{100 * mid('hit_rate'):5.0f} %{100 * mid('could_hit'):6.0f} %"
        load = f"{mid('running'):9.1f}{mid('imbalance'):7.2f} ×{mid('decide_us'):6.0f}"
        print(f"{kind:16}{policy:16}{ttft}{hits}{load}")


def simulate(policy: Policy, kind: str, constants: Constants, seed: int, o: argparse.Namespace) -> Outcome:
    affinity.WORTH, affinity.SPREAD, affinity.SLACK = constants
    return Run(policy, kind, WORKLOADS[kind] * o.replicas * o.load, seed, o).go()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--proxies", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=float, default=1.0, help="times the usual rate")
    parser.add_argument("--only", default="", help="one workload")
    parser.add_argument("--sweep", action="store_true", help="vary the constants instead of the policy")
    o = parser.parse_args()
    kinds = [k for k in WORKLOADS if k.startswith(o.only)]
    usual = (affinity.WORTH, affinity.SPREAD, affinity.SLACK)
    tried: list[tuple[str, Policy, Constants]] = [(str(policy), policy, usual) for policy in Policy]
    if o.sweep:
        varied = itertools.product((1.0, 4.0, 16.0, 64.0), ((0.25, 1.0), (0.5, 2.0), (1.0, 8.0)))
        constants = [(worth, spread, slack) for worth, (spread, slack) in varied]
        tried = [(" ".join(f"{x:g}" for x in c), Policy.AUTO, c) for c in constants]
    rows: dict[tuple[str, str], list[Outcome]] = {}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            (kind, name, pool.submit(simulate, policy, kind, c, 100 * seed, o))
            for seed, kind, (name, policy, c) in itertools.product(range(o.rounds), kinds, tried)
        ]
        for number, (kind, name, job) in enumerate(jobs, 1):
            rows.setdefault((kind, name), []).append(job.result())
            print(f"  {number} of {len(jobs)}: {kind}, {name}", file=sys.stderr, flush=True)
    table(rows)
    said = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "arguments": vars(o),
        "engine": asdict(Engine()),
        "rows": [{"workload": k, "policy": p, "rounds": [asdict(x) for x in xs]} for (k, p), xs in rows.items()],
    }
    results = Path(__file__).parent.parent / "results"
    results.mkdir(exist_ok=True)
    only = f"_{o.only.replace(' ', '_')}" if o.only else ""
    file = results / f"routing_sim{'_sweep' if o.sweep else ''}{only}.json"
    file.write_text(json.dumps(said, indent=1))
    print(f"written: {file}")


if __name__ == "__main__":
    main()
