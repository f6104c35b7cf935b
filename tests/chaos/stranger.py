"""What another user of the machine can do to a cluster: STATE_DIR OWN_DIR NODE GRPC REPLICA REPLICA_ID. Prints JSON.

Started as root, so that everything can be imported; it is user 65534 before it tries anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc

from headrace.core.types import DeployRequest, NodeId, NodeInfo, Resources
from headrace.errors import HeadraceError
from headrace.rpc import convert, convert_head, finding
from headrace.rpc.channel import OPTIONS, open_channel
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, head_pb2_grpc, node_pb2, node_pb2_grpc, replica_pb2, replica_pb2_grpc
from headrace.settings import TlsSettings

NOBODY = 65534


async def outcome(call: Any) -> str:
    """ "OK" if anything came back, else the status or the error."""
    try:
        async with asyncio.timeout(20):
            await call
        return "OK"
    except grpc.aio.AioRpcError as e:
        return e.code().name
    except TimeoutError:
        return "nothing came"


async def node_session(channel: grpc.aio.Channel) -> None:
    call: Any = node_pb2_grpc.NodeServiceStub(channel).Session()
    info = NodeInfo(NodeId("1"), 2**62, "evil", "0", Resources(8.0, 2**36), (), ("simulated",))
    await call.write(node_pb2.NodeMessage(hello=convert.node_info_to_pb(info)))
    message = await call.read()
    assert message is not grpc.aio.EOF
    call.cancel()


async def replica_session(channel: grpc.aio.Channel, replica_id: str) -> None:
    call: Any = replica_pb2_grpc.ReplicaServiceStub(channel).Session()
    hello = replica_pb2.SessionHello(proxy_id="evil", replica_id=replica_id)
    await call.write(replica_pb2.SessionRequest(hello=hello))
    message = await call.read()
    assert message is not grpc.aio.EOF
    call.cancel()


async def attempts(own: Path, node: str, admin: str, replica: str, replica_id: str) -> dict[str, str]:
    found: dict[str, str] = {}
    deploy = convert_head.deploy_request_to_pb(DeployRequest("/evil", trust_remote_code=True))
    log = head_pb2.ReadLogsRequest(replica_id=replica_id)
    for kind in ("plain", "own authority"):

        def channel(address: str, role: Role, kind: str = kind) -> grpc.aio.Channel:
            if kind == "plain":
                return grpc.aio.insecure_channel(address, options=OPTIONS)
            return open_channel(address, finding.from_state(own, Role.ADMIN, "evil", TlsSettings()), role)

        async with channel(admin, Role.HEAD) as c:
            stub: Any = head_pb2_grpc.AdminServiceStub(c)
            found[f"{kind}: status"] = await outcome(stub.Status(head_pb2.StatusRequest()))
            found[f"{kind}: deploy"] = await outcome(stub.Deploy(deploy))
            found[f"{kind}: logs"] = await outcome(stub.ReadLogs(log).read())
        async with channel(node, Role.HEAD) as c:
            found[f"{kind}: node"] = await outcome(node_session(c))
        async with channel(replica, Role.NODE) as c:
            found[f"{kind}: replica"] = await outcome(replica_session(c, replica_id))
            watch: Any = replica_pb2_grpc.ReplicaServiceStub(c).Watch(
                replica_pb2.WatchReplicaRequest(replica_id=replica_id)
            )
            found[f"{kind}: watch"] = await outcome(watch.read())
    return found


def files(state: Path) -> dict[str, str]:
    """Whether the folder can be read, and its key used."""
    found: dict[str, str] = {}
    try:
        os.listdir(state)
        found["list"] = "OK"
    except OSError as e:
        found["list"] = type(e).__name__
    for path in ("authority/ca.key", "nodes/1/credential.json", "head/state.db"):
        try:
            (state / path).read_bytes()
            found[path] = "OK"
        except OSError as e:
            found[path] = type(e).__name__
    try:
        finding.find(Role.ADMIN, "evil", TlsSettings(), state, "127.0.0.1")
        found["command"] = "OK"
    except HeadraceError as e:
        found["command"] = e.message
    return found


def main() -> None:
    state, own, *addresses = sys.argv[1:]
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    found = files(Path(state)) | asyncio.run(attempts(Path(own), *addresses))  # type: ignore[arg-type]
    print(json.dumps(found))


main()
