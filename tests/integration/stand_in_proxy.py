"""Takes a proxy's place in tests of the head: listens on the shared port, watches routes, and ends when told to."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import grpc

from headrace.process import stand_by
from headrace.rpc.credentials import client_side
from headrace.rpc.finding import from_state
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, head_pb2_grpc
from headrace.settings import TlsSettings

me = stand_by()
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if "=" in a)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

mine = from_state(Path(flags["state_dir"]), Role.PROXY, "stand-in", TlsSettings())
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind((flags["http_host"], int(flags["http_port"])))
sock.listen()
while True:
    request = head_pb2.WatchRoutesRequest(proxy_id=me or flags["proxy_id"], pid=os.getpid())
    try:
        creds, name = client_side(mine.current()), mine.expected(Role.HEAD)
        options = [("grpc.ssl_target_name_override", name)]
        with grpc.secure_channel(flags["head_address"], creds, options=options) as channel:
            for _ in head_pb2_grpc.RouteServiceStub(channel).Watch(request, wait_for_ready=True):
                pass
    except grpc.RpcError:
        pass
