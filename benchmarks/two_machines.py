"""Two proxies on two machines beside one: tokens a second at saturation, and what they share, which is nothing.

    sudo python benchmarks/two_machines.py [--share 0.2] [--streams 256] [--rounds 3]

Each machine is a network namespace with a wire of its own to the one where head and replicas run, and may use that
share of a core (a control group's quota), so that its proxy is what limits it. Clients take turns between the
addresses, as a TCP balancer deals out connections. One and two machines take turns in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from peers.generator import Answers, Generator, Load
from peers.meter import sample
from peers.ours import cluster, model, said, simulated
from peers.processes import DidNotStart, end_on_term, logged
from peers.targets import START_S, chat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "chaos"))
from namespaces import ip, link, namespace, remove_group, why_not  # the tests have it

STEP_S = 0.005
TOKENS = 400
PERIOD_US = 10_000
V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
NET = "10.231"


@contextmanager
def limited(name: str, share: float) -> Iterator[Path]:
    """A control group whose processes may use so much of a core."""
    first = (V1 / "cpu.cfs_quota_us").exists()
    path = (V1 if first else V2) / f"headrace-bench-{os.getpid()}-{name}"
    path.mkdir()
    try:
        quota = int(share * PERIOD_US)
        if first:
            (path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (path / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (path / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        yield path
    finally:
        remove_group(path)


class Machine:
    """A namespace with a proxy in it."""

    def __init__(self, host: str, child: subprocess.Popen[bytes]) -> None:
        self.host, self.process = host, psutil.Process(child.pid)


@contextmanager
def machine(number: int, share: float, head: str, folder: Path) -> Iterator[Machine]:
    host, log = f"{NET}.{number}.2", folder / f"proxy-{number}.log"
    with namespace() as space, limited(str(number), share) as group:
        link(None, f"{NET}.{number}.1", space, host)
        ip("route", "add", "default", "via", f"{NET}.{number}.1", ns=space)
        inside = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *space.enter]
        flags = [f"--head_address={head}", f"--http_host={host}", "--http_port=8000", "--allow_insecure"]
        flags.append(f"--state_dir={folder}/state")
        argv = [*inside, sys.executable, "-m", "headrace", "proxy", f"--proxy_id=proxy-{number}", *flags]
        with logged(argv, log, {"HEADRACE_COALESCE_S": "0"}) as child:
            wait_until_ready(host, child, log)
            yield Machine(host, child)


def wait_until_ready(host: str, child: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and child.poll() is None:
        try:
            with socket.create_connection((host, 8000), 2.0) as s:
                s.sendall(b"GET /ready HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n")
                if b" 200 " in s.recv(4096).split(b"\r\n")[0]:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise DidNotStart(log.read_text(errors="replace")[-1500:])


def run(machines: Sequence[Machine], generators: Sequence[Generator], streams: int) -> dict[str, object]:
    """The same streams, dealt out over the machines."""
    body = chat(model(STEP_S), TOKENS, stream=True)
    before = [sample([m.process]) for m in machines]
    for m, generator in zip(machines, generators, strict=False):
        generator.send(Load(8000, body, streams // len(machines), TOKENS, said(TOKENS), 0.0, host=m.host))
    answers: list[Answers] = []
    for _, generator in zip(machines, generators, strict=False):
        while isinstance(word := generator.next(), str):
            pass
        assert isinstance(word, Answers)
        answers.append(word)
    cost = [sample([m.process]) - b for m, b in zip(machines, before, strict=True)]
    tokens = sum(a.tokens for a in answers)
    begin, end = min(a.begun_at for a in answers), max(a.ended_at for a in answers)
    return {
        "machines": len(machines),
        "tokens_s": tokens / (end - begin),
        "us": sum(c.cpu_s for c in cost) / tokens * 1e6,
        "proxy_cores": [c.cpu_s / (end - begin) for c in cost],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.2, help="of a core, that each machine has")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    end_on_term()
    if why := why_not():
        print(f"not run: {why}")
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        with namespace() as space:
            # Head and replicas listen on an address that is there as long as this.
            link(None, f"{NET}.0.1", space, f"{NET}.0.2")
            c = stack.enter_context(cluster({model(STEP_S): simulated(STEP_S)}, 1, [], folder, host=f"{NET}.0.1"))
            machines = [stack.enter_context(machine(n, args.share, c.endpoint.grpc, folder)) for n in (1, 2)]
            generators = [stack.enter_context(Generator()) for _ in machines]
            run(machines, generators, 16)
            for number in range(args.rounds):
                for count in (1, 2) if number % 2 == 0 else (2, 1):
                    # The one machine is each of the two in turn.
                    chosen = machines if count == 2 else [machines[number % 2]]
                    rows.append(run(chosen, generators, args.streams))
                    print(
                        f"  round {number + 1}: {count} machine(s): {rows[-1]['tokens_s']:.0f} tokens/s",
                        file=sys.stderr,
                    )
            stack.close()
    middle = {n: statistics.median(r["tokens_s"] for r in rows if r["machines"] == n) for n in (1, 2)}  # type: ignore[type-var]
    cost = {n: statistics.median(r["us"] for r in rows if r["machines"] == n) for n in (1, 2)}  # type: ignore[type-var]
    for n in (1, 2):
        print(f"{n} machine(s) of {args.share:g} core: {middle[n]:8.0f} tokens/s, {cost[n]:.1f} µs of CPU a token")
    print(f"two / one: {middle[2] / middle[1]:.2f}")
    if args.output:
        args.output.write_text(json.dumps({"share": args.share, "streams": args.streams, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
