"""A replica that does what engine_args_json says, for faults that a real one cannot be asked to make.

crash: exit with this code before listening       once: …but only in the first life
failure: {"reason": …, "cause": …} left behind, then exit 1; until a file "mended" appears in the folder
announces: say only through the pipe where it listens, as on a full disk
never_listens, wrong_identity: no endpoint.json, or one that names another process
hold: stay LOADING until a file "ready" appears in the folder
break_watch: end each Watch stream after this many statuses
contradict: go back to LOADING after READY
drains_s: how long a drain takes                  overruns: …whatever time it was given
deaf: ignore TERM, and fail to drain
children: start one process in the group, one in a session of its own
eats_once: once a file "eat" appears in the folder (and remove that), take all memory there is
lines: print so many lines at the start
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from headrace.core.phase import Phase
from headrace.core.specfile import parse_spec
from headrace.core.types import Load, ModelInfo, ReplicaStatus
from headrace.errors import NotFound
from headrace.process import ENDPOINT_ENV, ProcessRecord, write_atomic
from headrace.rpc.channel import bind, new_server
from headrace.rpc.convert import replica_status_to_pb
from headrace.rpc.credentials import from_environment
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc, types_pb2


class Replica(replica_pb2_grpc.ReplicaServiceServicer):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = parse_spec((folder / "spec.json").read_text())
        self.spec, self.host = file.spec, file.host
        self.told: dict[str, Any] = json.loads(file.spec.model.engine_args_json)
        self.end = asyncio.Event()
        self.step = 0

    def status(self) -> ReplicaStatus:
        self.step += 1
        if self.told.get("eats_once") and (self.folder / "eat").exists():
            (self.folder / "eat").unlink()
            self.eaten = b"x" * 2**34
        held = self.told.get("hold") and not (self.folder / "ready").exists()
        contradicts = self.told.get("contradict") and self.step > 3
        loading = held or contradicts
        return ReplicaStatus(
            self.spec.replica_id,
            self.spec.deployment,
            self.spec.revision,
            Phase.LOADING if loading else Phase.READY,
            activity="loading" if loading else "",
            progress=0.4 if loading else -1.0,
            pid=os.getpid(),
            load=Load(step=self.step),
            model=None if loading else ModelInfo("stand-in", "1", 256, 1000),
        )

    async def Watch(
        self, request: replica_pb2.WatchReplicaRequest, context: Any
    ) -> AsyncIterator[types_pb2.ReplicaStatus]:
        if request.replica_id != self.spec.replica_id:
            await context.abort(grpc.StatusCode.NOT_FOUND, NotFound("another replica").message)
        sent = 0
        while sent < self.told.get("break_watch", sys.maxsize):
            yield replica_status_to_pb(self.status())
            sent += 1
            await asyncio.sleep(0.05)

    async def Drain(self, request: replica_pb2.DrainRequest, context: Any) -> replica_pb2.DrainResponse:
        if request.replica_id != self.spec.replica_id:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "another replica")
        print(f"drain for {request.timeout_s:g} s", flush=True)
        if self.told.get("deaf"):
            await context.abort(grpc.StatusCode.INTERNAL, "will not")
        allowed_s = sys.maxsize if self.told.get("overruns") else request.timeout_s
        await asyncio.sleep(min(allowed_s, self.told.get("drains_s", 0)))
        self.end.set()
        return replica_pb2.DrainResponse()

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[replica_pb2.Frame]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a stand-in")
        yield replica_pb2.Frame()


async def main(folder: Path) -> int:
    replica = Replica(folder)
    told = replica.told
    print(f"life of {replica.spec.replica_id}", flush=True)
    for number in range(told.get("lines", 0)):
        print(f"line {number}", flush=True)
    if told.get("children"):
        sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        children = [subprocess.Popen(sleeper, start_new_session=own) for own in (False, True)]  # noqa: ASYNC220
        write_atomic(folder / "children", " ".join(str(c.pid) for c in children))
    if "failure" in told and not (folder / "mended").exists():
        write_atomic(folder / "failure.json", json.dumps(told["failure"]))
        return 1
    if "crash" in told and not (told.get("once") and (folder / "lived").exists()):
        (folder / "lived").touch()
        print("something is wrong with the weights", file=sys.stderr, flush=True)
        return int(told["crash"])
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if told.get("deaf") else replica.end.set)
    server = new_server()
    replica_pb2_grpc.add_ReplicaServiceServicer_to_server(replica, server)
    port = bind(server, replica.host, 0, from_environment(), "")
    await server.start()
    me = ProcessRecord.of(os.getpid())
    assert me
    start_time = me.start_time + 1 if told.get("wrong_identity") else me.start_time
    if told.get("announces"):
        endpoint = {"address": f"{replica.host}:{port}", "pid": me.pid, "start_time": start_time}
        os.write(int(os.environ[ENDPOINT_ENV]), f"{json.dumps(endpoint)}\n".encode())
    elif not told.get("never_listens"):
        endpoint = {"address": f"{replica.host}:{port}", "pid": me.pid, "start_time": start_time}
        write_atomic(folder / "endpoint.json", json.dumps(endpoint))
    await replica.end.wait()
    await server.stop(0)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
