"""Who may call what: the one table of it, and what a certificate says of the one who shows it.

A certificate has a role by a DNS name in its SAN, and the name of its holder by a URI beside it. One that an authority
of the user's own has signed and that has no such name may do everything but join.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote

from headrace.errors import Forbidden


class Role(StrEnum):
    HEAD = "head"
    NODE = "node"  # a scheduler and its replicas
    PROXY = "proxy"
    ADMIN = "admin"  # the command line
    STRANGER = "stranger"  # has shown no certificate

    @property
    def dns_name(self) -> str:
        """Names the role in a certificate; also what a client expects to find in that of the peer."""
        return f"{self}.headrace"


ROLES = frozenset(Role) - {Role.STRANGER}
JOIN_NAME = "join.headrace"  # in the authority's own certificate, with which the join port answers
_URI = "headrace://"

_NODE, _PROXY, _ADMIN = frozenset({Role.NODE}), frozenset({Role.PROXY}), frozenset({Role.ADMIN})

# Every method of every service. What is not named here may be called by nobody.
MAY_CALL: Mapping[str, frozenset[Role]] = {
    "NodeService/Session": _NODE,
    "RouteService/Watch": _PROXY,
    "RouteService/Ensure": _PROXY,
    "RouteService/Questions": _PROXY,
    "RouteService/Answer": _PROXY,
    "AdminService/Deploy": _ADMIN,
    "AdminService/Delete": _ADMIN,
    "AdminService/Scale": _ADMIN,
    "AdminService/Rollback": _ADMIN,
    "AdminService/ListRevisions": _ADMIN,
    "AdminService/AddAdapter": _ADMIN,
    "AdminService/RemoveAdapter": _ADMIN,
    "AdminService/Status": _ADMIN,
    "AdminService/WatchStatus": _ADMIN,
    "AdminService/ListModels": _ADMIN,
    "AdminService/AddModel": _ADMIN,
    "AdminService/RemoveModel": _ADMIN,
    "AdminService/ReadLogs": _ADMIN,
    "AdminService/Explain": _ADMIN,
    "ReplicaService/Session": _PROXY,
    "ReplicaService/Watch": _NODE,
    "ReplicaService/Drain": _NODE,
    "ReplicaService/SetAdapters": _NODE,
    "CertificateService/Renew": _NODE | _PROXY | _ADMIN,
    "JoinService/Join": frozenset({Role.STRANGER}),
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who calls. `name`: of the holder within its role, such as a node's id; "": its certificate names none."""

    roles: frozenset[Role]
    name: str = ""

    def check(self, method: str) -> None:
        """Forbidden unless the peer may call `method`, written /package.Service/Method."""
        allowed = MAY_CALL.get(method.rpartition(".")[2], frozenset())
        if self.roles & allowed:
            return
        has = " or ".join(sorted(self.roles)) if self.roles != ROLES else "any"
        wanted = " or ".join(sorted(allowed)) or "no"
        raise Forbidden(f"A certificate with the role {has} may not call {method.lstrip('/')}, which takes {wanted}.")

    def check_node(self, node_id: str) -> None:
        """Forbidden if its certificate is another node's."""
        if self.name and self.name != node_id:
            raise Forbidden(
                f"This certificate is of node {self.name}, not of node {node_id[:100]!r}: start the scheduler with"
                f" --node_id={self.name}, or have this one join."
            )


def uri_of(role: Role, name: str) -> str:
    """What names the holder in a certificate."""
    return f"{_URI}{role}/{quote(name, safe='')}"


def peer_of(auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
    """What gRPC's authentication context says of a peer."""
    if not any(auth_context.get("x509_pem_cert", ())):
        return Peer(frozenset({Role.STRANGER}))
    names = {n.decode(errors="replace").lower() for n in auth_context.get("peer_dns", ())}
    roles = frozenset(r for r in ROLES if r.dns_name in names)
    for uri in auth_context.get("peer_uri", ()):
        role, _, name = uri.decode(errors="replace").removeprefix(_URI).partition("/")
        if role in roles and uri.startswith(_URI.encode()):
            return Peer(roles, unquote(name))
    return Peer(roles or ROLES)
