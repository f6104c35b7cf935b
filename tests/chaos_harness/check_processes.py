"""I4 and I5: what lives is what is wanted; what waits and what memory holds is bounded; load is released (I3)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from chaos_harness.history import Event, Violation
from chaos_harness.stats import slope

_SOON_S = 10.0
_SLOPE = 1.0  # MiB a minute and process that a warm system may grow by, in runs long enough to tell
_LONG_S = 600.0
_WARM_S = 180.0  # of a process, until its buffers and records have about the size that they will have
_TELLING_MIN = 1.0  # minutes after which a slope says something


@dataclass
class Processes:
    violations: list[Violation] = field(default_factory=list)
    orphans: int = 0
    doubles: int = 0
    max_queue: float = 0.0
    cap: float = 0.0
    rss_slope: float = 0.0  # MiB a minute, of the part that grows most
    failovers: float = 0.0  # as the proxies count them


def check_processes(processes: list[Event], faults: list[Event]) -> Processes:
    found = Processes()
    tables = [e for e in processes if e["ev"] == "table"]
    _check_orphans(found, tables)
    _check_doubles(found, tables)
    _check_adopted(found, tables, faults)
    for e in processes:
        if e["ev"] == "quiet":
            _check_quiet(found, e)
        elif e["ev"] == "stopped" and e["left"]:
            found.orphans += len(e["left"])
            found.violations.append(Violation("I4", "left", "lived on when all had been told to end", e["t"], (e,)))
    _check_memory(found, tables)
    return found


def _check_orphans(found: Processes, tables: list[Event]) -> None:
    """A replica's process that the head does not want, or a child of one that is gone, for longer than ten seconds.

    That is: while the head could say what it wants.
    """
    unwanted_since: dict[int, float] = {}
    told: set[int] = set()
    for e in tables:
        if e["wanted"] is None:
            unwanted_since.clear()  # nobody to say what is wanted: the time begins anew
            continue
        rows = {r["pid"]: r for r in e["rows"] if r["role"] in ("replica", "child")}
        wanted = e["wanted"]["replicas"]
        unwanted = {pid for pid, r in rows.items() if r["replica"] not in wanted or r.get("leader", pid) not in rows}
        unwanted_since = {pid: unwanted_since.get(pid, e["t"]) for pid in unwanted}
        for pid, since in unwanted_since.items():
            if e["t"] - since > _SOON_S and pid not in told:
                told.add(pid)
                found.orphans += 1
                what = f"replica {rows[pid]['replica']} (process {pid}) is wanted by nobody and lives on"
                found.violations.append(Violation("I4", "orphan", what, since, (rows[pid],)))


def _check_doubles(found: Processes, tables: list[Event]) -> None:
    """Two processes of one replica, proxy, scheduler or head. Seen in two tables, so that a change of hands is none."""
    before: set[tuple[str, ...]] = set()
    told: set[tuple[str, ...]] = set()
    for e in tables:
        by_name: defaultdict[tuple[str, ...], list[Event]] = defaultdict(list)
        for r in e["rows"]:
            if r["role"] not in ("other", "standby", "child"):
                by_name[(r["role"], r.get("replica") or r.get("proxy") or r.get("node", ""))].append(r)
        now = {name for name, rows in by_name.items() if len(rows) > 1}
        for name in (now & before) - told:
            told.add(name)
            found.doubles += 1
            what = f"{' '.join(name)} runs {len(by_name[name])} times"
            found.violations.append(Violation("I4", "double", what, e["t"], tuple(by_name[name])))
        before = now


def _check_adopted(found: Processes, tables: list[Event], faults: list[Event]) -> None:
    """After the death of a scheduler alone its replicas are the same processes, but for those that died otherwise."""
    deaths = [f for f in faults if f["ev"] == "begin" and f.get("replica")]
    updates = [f["t"] for f in faults if f["ev"] == "begin" and f["kind"] in ("rolling_update", "scale")]
    for fault in (f for f in faults if f["ev"] == "begin" and f["kind"] == "scheduler_kill"):
        t = fault["t"]
        after = next((e for e in tables if t + 3 <= e["t"] <= t + _SOON_S), None)
        if after is None or any(t - 40 < u < t + _SOON_S for u in updates):
            continue
        living = {r["pid"] for r in after["rows"]}
        for replica, pid in fault["adopts"]:
            died = any(d["replica"] == replica and t - 40 < d["t"] < t + _SOON_S for d in deaths)
            if pid not in living and not died:
                what = f"replica {replica} (process {pid}) did not survive its scheduler"
                found.violations.append(Violation("I4", "not adopted", what, t, (fault,)))


def _check_quiet(found: Processes, e: Event) -> None:
    """Ten seconds after the last fault and the last request."""

    def wrong(invariant: str, kind: str, what: str) -> None:
        found.violations.append(Violation(invariant, kind, what, e["t"], ({k: e[k] for k in ("wanted", "roles")},)))

    roles, wanted = e["roles"], e["wanted"]
    if wanted is None:
        wrong("I4", "head", "the head does not answer")
        return
    expected = {
        "head": 1, "scheduler": e["size"]["nodes"],
        "replica": sum(wanted["deployments"].values()),
    }  # fmt: skip
    proxies, pids = set(wanted["proxies"].values()), {r["pid"] for r in e["rows"]}
    if len(proxies & pids) != e["size"]["proxies"]:
        wrong("I4", "count", f"{len(proxies & pids)} proxies live, and {e['size']['proxies']} are wanted")
    if roles.get("proxy", 0) + roles.get("standby", 0) > e["size"]["proxies"] + 1:  # one spare
        wrong("I4", "orphan", f"{roles.get('proxy', 0)} proxies and {roles.get('standby', 0)} that were spares")
    for role, count in expected.items():
        if roles.get(role, 0) != count:
            wrong("I4", "count", f"{roles.get(role, 0)} processes of {role}, and {count} are wanted")
    for replica, r in wanted["replicas"].items():
        if r["phase"] not in ("READY", "STOPPED"):
            wrong("I4", "not ready", f"replica {replica} is {r['phase']}")
        if r["running"] or r["waiting"]:
            wrong("I3", "load", f"replica {replica} has {r['running']} + {r['waiting']} requests, and nobody asks")


def check_queues(found: Processes, queues: list[Event], quiet_at: float) -> None:
    for e in queues:
        found.cap = e["cap"]
        found.max_queue = max(found.max_queue, e["unplaced"])
        found.failovers = max(found.failovers, e["failovers"])
    if found.max_queue > found.cap:
        over = next(e for e in queues if e["unplaced"] > found.cap)
        what = f"{found.max_queue:g} requests waited, and {found.cap:g} may"
        found.violations.append(Violation("I5", "queue", what, over["t"], (over,)))
    last = queues[-1] if queues else None
    if last and last["t"] >= quiet_at + 5 and (last["in_flight"] or last["unplaced"]):
        what = f"{last['in_flight']:g} requests in flight and {last['unplaced']:g} waiting, and nobody asks"
        found.violations.append(Violation("I3", "load", what, last["t"], (last,)))


def _check_memory(found: Processes, tables: list[Event]) -> None:
    """The growth in the second half of the run, of processes that were warm by then."""
    points: defaultdict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    born: dict[int, float] = {}
    warm_s = min(_WARM_S, (tables[-1]["t"] - tables[0]["t"]) / 4) if tables else 0.0
    for i, e in enumerate(tables):
        for r in e["rows"]:
            if e["t"] - born.setdefault(r["pid"], e["t"]) >= warm_s and i >= len(tables) // 2:
                points[(r["role"], r["pid"])].append((e["t"] / 60, r["rss"] / 2**20))
    for (role, pid), seen in points.items():
        minutes = seen[-1][0] - seen[0][0]
        if minutes < _TELLING_MIN:
            continue
        grows = slope(seen)
        found.rss_slope = max(found.rss_slope, grows)
        if minutes * 60 > _LONG_S / 2 and grows > _SLOPE:
            what = f"{role} {pid} grows by {grows:.1f} MiB a minute over {minutes:.0f} minutes"
            found.violations.append(Violation("I5", "memory", what, seen[0][0] * 60))
