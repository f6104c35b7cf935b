"""A newcomer's second machine: the line that the head prints, typed as it is, and nothing that passes between the two
can be read."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from chaos.namespaces import Namespace, link, namespace, why_not
from chaos.sniffer import is_tls
from cluster_fixtures import HEADRACE, Cluster, cluster
from head_fixtures import until

from headrace.process import Child, child_env

HEAD, SECOND = "10.231.61.1", "10.231.61.2"
OURS, HTTP = "10.231.62.1", "10.231.62.2"
PROMPT = "the-crown-jewels-are-under-the-third-step"
PREFACE = "PRI * HTTP/2.0"
PROBE = "hello-I-am-in-plain-text"

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


def test_what_is_tls_and_what_is_not() -> None:
    hello = b"\x16\x03\x01\x00\x03abc" + b"\x17\x03\x03\x00\x01x"
    assert is_tls(hello)
    assert is_tls(hello[:-1])
    assert not is_tls(PREFACE.encode() + hello)
    assert not is_tls(hello + PREFACE.encode())


class Wire:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def carried(self) -> list[dict[str, object]]:
        out, _ = self._process.communicate(timeout=30)
        return json.loads(out)


@contextmanager
def sniffing(ns: Namespace, interface: str) -> Iterator[Wire]:
    argv = [*ns.enter, sys.executable, str(Path(__file__).with_name("sniffer.py")), interface, PROMPT, PREFACE, PROBE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"listening\n"
            yield Wire(process)
        finally:
            process.kill()


def type_line(c: Cluster, line: str, state: Path, ns: Namespace) -> Child:
    """Type the line into a shell of the second machine."""
    script = f'headrace() {{ exec "$PYTHON" -m headrace "$@"; }}; {line} --num_cpus=1 --num_gpus=0'
    env = {"PYTHON": HEADRACE[0], "HEADRACE_STATE_DIR": str(state), "HEADRACE_CACHE_DIR": str(state / "cache")}
    child = Child.spawn([*ns.enter, "sh", "-c", script], env=child_env(env), output=c.folder / "second.log")
    c.children.append(child)
    return child


async def test_two_machines_joined_by_the_printed_line(tmp_path: Path) -> None:
    with namespace() as one, namespace() as two:
        link(None, OURS, one, HTTP)
        interface = link(one, HEAD, two, SECOND)
        async with cluster(tmp_path) as c:
            with sniffing(one, interface) as wire:
                await newcomer(c, one, two)
                flows = wire.carried()
    # What we sent in plain text was seen, so anything else would have been.
    probes = [f for f in flows if PROBE in f["words"]]  # type: ignore[operator]
    assert len(probes) == 1, flows
    assert not probes[0]["tls"]
    others = [f for f in flows if f not in probes and f["bytes"] != 0]
    assert others
    assert not [f for f in others if f["words"]], others
    # The other direction of the probe's connection is the server's TLS alert, if it says anything.
    assert not [f for f in others if not f["tls"] and f["bytes"] > 7], others  # type: ignore[operator]
    assert len([f for f in others if f["bytes"] > 2000]) >= 4, others  # type: ignore[operator]


async def newcomer(c: Cluster, one: Namespace, two: Namespace) -> None:
    await c.head(
        f"--host={HEAD}", f"--http_host={HTTP}", "--allow_insecure", "--join_port=0", prefix=one.enter
    )  # fmt: skip
    assert c.endpoint
    c.scheduler("1", f"--host={HEAD}", "--num_cpus=1", prefix=one.enter)
    said = c.folder / "head.log"
    await until(lambda: "headrace scheduler --node_id" in said.read_text())
    (line,) = [x.strip() for x in said.read_text().splitlines() if x.strip().startswith("headrace scheduler")]
    second = c.folder / "second"
    type_line(c, line, second, two)
    await until(lambda: said.read_text().count("node_joined") == 2)
    http = c.endpoint.http
    async with httpx.AsyncClient(base_url=f"http://{http}", timeout=60, trust_env=False) as client:
        env = child_env({"HEADRACE_STATE_DIR": str(c.state)})
        process = await asyncio.create_subprocess_exec(
            *one.enter, *HEADRACE, "deploy", "builtin:demo", "--name=sim", "--engine=simulated", "--replicas=2",
            "--num_cpus=1", env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 90)
        assert process.returncode == 0, out.decode() + c.words()
        seen: set[str] = set()
        body = {"model": "sim", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 30}
        async with asyncio.timeout(60):
            while len(seen) < 2:
                r = await client.post("/v1/chat/completions", json=body)
                assert r.status_code == 200, r.text
                seen.add(r.headers["x-headrace-replica"])
                assert len(r.json()["choices"][0]["message"]["content"]) > 10
    kept = json.loads(next(second.glob("nodes/*/credential.json")).read_text())
    assert kept["head"]["host"] == HEAD
    assert not (second / "authority").exists(), "it cannot be anybody but itself"
    addresses = [json.loads(p.read_text())["address"] for p in second.glob("nodes/*/replicas/*/endpoint.json")]
    assert [a.rpartition(":")[0] for a in addresses] == [SECOND], "replicas listen where the head reaches them"
    host, _, port = c.endpoint.node.rpartition(":")
    probe = f"import socket; s = socket.create_connection(({host!r}, {port})); s.sendall(b'{PROBE}'); s.recv(100)"
    await asyncio.to_thread(subprocess.run, [*two.enter, sys.executable, "-c", probe], timeout=30, capture_output=True)
