"""A node that the head cannot hear, or that cannot hear the head: in network namespaces of their own."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_fixtures import Cluster, Traffic, cluster, ready
from namespaces import Namespace, ip, link, namespace, why_not

pytestmark = pytest.mark.long

HEAD, NODE = "10.231.1.1", "10.231.1.2"  # the wire that is cut
SECOND = ("10.231.2.1", "10.231.2.2")  # head and second node
TO_HEAD = ("10.231.3.1", "10.231.3.2")  # we and the head
TO_NODE = ("10.231.4.1", "10.231.4.2")  # we and the first node


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    if why := why_not():
        pytest.skip(why)


class Wire:
    """Between the head and the first node."""

    def __init__(self, head: Namespace, node: Namespace) -> None:
        self._head, self._node = head, node
        self._end = link(head, HEAD, node, NODE)

    def cut(self, how: str) -> None:
        self._do(how, "down", "add")

    def heal(self, how: str) -> None:
        self._do(how, "up", "del")

    def _do(self, how: str, link_state: str, route: str) -> None:
        match how:
            case "link down":
                ip("link", "set", self._end, link_state, ns=self._head)
            case "head cannot send":
                ip("route", route, "blackhole", f"{NODE}/32", ns=self._head)
            case "node cannot send":
                ip("route", route, "blackhole", f"{HEAD}/32", ns=self._node)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["link down", "head cannot send", "node cannot send"])
async def test_traffic_goes_on_one_copy_is_made_and_goes_again(tmp_path: Path, how: str) -> None:
    with ExitStack() as stack:
        head, one, two = (stack.enter_context(namespace()) for _ in range(3))
        wire = Wire(head, one)
        link(head, SECOND[0], two, SECOND[1])
        link(None, TO_HEAD[0], head, TO_HEAD[1])
        link(None, TO_NODE[0], one, TO_NODE[1])
        async with cluster(tmp_path) as c:
            await scenario(c, head, one, two, wire, how)


async def scenario(c: Cluster, head: Namespace, one: Namespace, two: Namespace, wire: Wire, how: str) -> None:
    c.host = TO_HEAD[1]
    await c.head("--host=0.0.0.0", "--allow_insecure", "--lease_s=3", num_proxies=0, prefix=head.enter)
    assert c.endpoint
    grpc_port = c.endpoint.grpc.rpartition(":")[2]
    flags = ("--allow_insecure",)
    c.scheduler("1", f"--head_address={HEAD}", f"--host={NODE}", *flags, prefix=one.enter)
    # A proxy at the node: it reaches the replicas there, whatever becomes of the wire.
    c.spawn(
        "proxy", "proxy", f"--http_host={TO_NODE[1]}", "--http_port=8099", f"--head_address={HEAD}:{grpc_port}",
        *flags, prefix=one.enter,
    )  # fmt: skip
    async with c.admin() as admin:
        await admin.deploy("sim")
    await c.until(ready(1))
    originals = c.replicas()
    assert len(originals) == 1
    c.scheduler("2", f"--head_address={SECOND[0]}", f"--host={SECOND[1]}", *flags, prefix=two.enter)
    await c.until(lambda s: sum(n.alive for n in s.nodes) == 2)

    async with Traffic(f"http://{TO_NODE[1]}:8099") as traffic:
        wire.cut(how)
        await c.until(lambda s: not s.nodes[0].alive)
        await c.until(ready(1))  # the copy, at the second node
        copies = c.replicas() - originals
        assert len(copies) == 1
        await traffic.more(4 * 6)
        assert c.replicas() == originals | copies

        wire.heal(how)
        await c.until(lambda s: s.nodes[0].alive)
        await until_only(c, originals)
        await c.until(lambda s: ready(1)(s) and len(s.replicas) == 1 and s.replicas[0].node_id == "1")
        await traffic.more(2 * 6)
    assert traffic.wrong == []
    words = (c.folder / "head.log").read_text()
    assert words.count("node_lost") == words.count("node_returned") == 1, "no flapping"
    assert words.count("replica_placed") == 2, "no double placement"


async def until_only(c: Cluster, wanted: object) -> None:
    async with asyncio.timeout(60):
        while c.replicas() != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
