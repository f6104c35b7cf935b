"""The head's side of joining: the port that strangers reach, and the renewal of what they got there."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from headrace.core.types import check_name
from headrace.errors import Conflict, Forbidden, InvalidRequest, Overloaded, Unavailable
from headrace.head.tokens import Member, Tokens
from headrace.rpc import certificates
from headrace.rpc.authority import Authority
from headrace.rpc.channel import bind_with, rpc_errors
from headrace.rpc.guard import Guard, caller
from headrace.rpc.joining import JoinLine
from headrace.rpc.roles import Role
from headrace.rpc.v1 import join_pb2, join_pb2_grpc

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
_JOINING = (Role.NODE, Role.PROXY, Role.ADMIN)
LINE_S = 3600.0  # for which a line can be used, if nothing else is said
_AT_ONCE, _PER_S = 20, 4.0  # tries to join
_OPTIONS = [
    ("grpc.max_receive_message_length", 32 * 1024),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.so_reuseport", 0),
]


def new_line(
    tokens: Tokens,
    authority: Authority,
    join_at: str,
    role: str,
    *,
    name: str = "",
    life_s: float = LINE_S,
    uses: int = 1,
    host: str = "",
) -> JoinLine:
    """A line with a new token. `join_at`: host:port of the join port; `host`: where others reach it, if not there.

    OSError if the token cannot be written.
    """
    listens, _, port = join_at.rpartition(":")
    listens = listens.strip("[]")
    token = tokens.make(Role(role), name, life_s, uses)
    return JoinLine(token, host or _reached_at(listens), int(port), authority.fingerprint)


def command(role: str, line: JoinLine, name: str = "") -> str:
    """What to type on the other machine."""
    match role:
        case Role.ADMIN:
            return f"headrace join {line}"
        case Role.PROXY:
            return f"headrace proxy --join={line}"
        case _:
            return f"headrace scheduler --node_id={name or '$(hostname)'} --join={line}"


def _reached_at(host: str) -> str:
    """Where other machines reach what listens on `host`: if on every address, that of the way out. Sends nothing."""
    if host not in ("0.0.0.0", "::", ""):
        return host
    family, out = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((out, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


class Pace:
    """Lets `at_once` through, and then `per_s` in a second."""

    def __init__(self, at_once: int, per_s: float) -> None:
        self._most, self._per_s = float(at_once), per_s
        self._left, self._at = float(at_once), 0.0

    def passes(self, now: float) -> bool:
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Issuer:
    """Gives certificates to those who join, and new ones to those who have joined.

    `known`: whether a node of this id is there.
    """

    def __init__(self, authority: Authority, tokens: Tokens, life_s: float, known: Callable[[str], bool]) -> None:
        self._authority, self._tokens, self._life_s, self._known = authority, tokens, life_s, known

    def join(self, text: str, role: str, name: str, request: bytes) -> bytes:
        """A certificate (PEM). HeadraceError, in one sentence, if there is none."""
        if role not in _JOINING or len(text) > 100:
            raise InvalidRequest(f"Nobody joins with the role {role[:20]!r}.")
        check_name(name, what="name for a node, a proxy or an admin", param="name")
        public_key = certificates.requested_key(request)
        key = certificates.key_fingerprint(public_key)
        token = self._tokens.check(text, role, name, key)
        before = self._tokens.member(role, name)
        same = before is not None and before.key == key
        held = (before is not None and before.ends_at > time.time()) or self._known(name)
        if role == Role.NODE and held and not same and not token.name:
            raise Conflict(
                f"There is a node {name} already: choose another --node_id, or, if this machine is to take its place,"
                f" run `headrace token --node_id={name}` at the head."
            )
        member = Member(role, name, key, time.time(), time.time() + self._life_s)
        try:
            self._tokens.used(text, token, member)
        except OSError as e:
            raise Unavailable(f"The head cannot write down who joins: {e.strerror}.") from e
        log.info("member_joined", role=role, name=name)
        return self._authority.issue(public_key, Role(role), name, self._life_s)

    def renew(self, role: Role, name: str, request: bytes) -> bytes:
        """A new certificate (PEM) of the same role and name. Forbidden if its holder is not a member any more."""
        before = self._tokens.member(role, name)
        if before is None:
            raise Forbidden(f"{role} {name} is not a member of this cluster (any more); it can join again.")
        public_key = certificates.requested_key(request)
        pem = self._authority.issue(public_key, role, name, self._life_s)
        key = certificates.key_fingerprint(public_key)
        self._tokens.put(Member(role, name, key, before.joined_at, time.time() + self._life_s))
        log.info("member_renewed", role=str(role), name=name)
        return pem


class CertificateService(join_pb2_grpc.CertificateServiceServicer):
    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    @rpc_errors
    async def Renew(self, request: join_pb2.RenewRequest, context: Context) -> join_pb2.RenewResponse:
        peer = caller(context)
        if len(peer.roles) != 1 or not peer.name:
            raise Forbidden("This certificate does not say whose it is, so it cannot be renewed here.")
        return join_pb2.RenewResponse(
            certificate=self._issuer.renew(next(iter(peer.roles)), peer.name, request.request)
        )


class JoinService(join_pb2_grpc.JoinServiceServicer):
    def __init__(self, issuer: Issuer, node_port: int, grpc_port: int) -> None:
        self._issuer, self._ports = issuer, (node_port, grpc_port)
        self._pace = Pace(_AT_ONCE, _PER_S)

    @rpc_errors
    async def Join(self, request: join_pb2.JoinRequest, context: Context) -> join_pb2.JoinResponse:
        if not self._pace.passes(time.monotonic()):
            raise Overloaded("Too many try to join at this moment; try again in some seconds.", retry_after_s=5.0)
        pem = self._issuer.join(request.token, request.role, request.name, request.request)
        return join_pb2.JoinResponse(certificate=pem, node_port=self._ports[0], grpc_port=self._ports[1])


def new_join_server(service: JoinService, authority: Authority, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """A server that asks for no certificate and shows the authority's own, and its port. UserError if that is taken."""
    server = grpc.aio.server(interceptors=[Guard()], options=_OPTIONS, maximum_concurrent_rpcs=16)
    join_pb2_grpc.add_JoinServiceServicer_to_server(service, server)
    mine = [(certificates.key_pem(authority.key), authority.pem)]
    return server, bind_with(server, host, port, grpc.ssl_server_credentials(mine), "--join_port")
