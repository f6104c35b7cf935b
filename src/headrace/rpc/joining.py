"""How a machine joins a cluster: it trusts the fingerprint in the line that it was given, and nothing else.

The join port answers with the authority's own certificate. Once that is the one of the fingerprint, the token and a
signing request go over a connection that is checked against it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from headrace.errors import HeadraceError, TlsFailed, Unavailable, UserError
from headrace.lock import private_folder
from headrace.process import write_atomic
from headrace.rpc import certificates, finding
from headrace.rpc.channel import OPTIONS, Connection, from_rpc
from headrace.rpc.credentials import Head, Kept, Material, keep
from headrace.rpc.renewal import until_renewed
from headrace.rpc.roles import JOIN_NAME, Role
from headrace.rpc.v1 import join_pb2, join_pb2_grpc

log = structlog.get_logger()

_CALL_S = 20.0
_AGAIN_S = 2.0
_LINE = re.compile(
    r"(?P<token>[0-9a-f]{32})@(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s@/:\[\]]+):(?P<port>\d{1,5})/sha256:(?P<sha>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class JoinLine:
    """What `headrace token` shows, as text: TOKEN@HOST:PORT/sha256:FINGERPRINT."""

    token: str
    host: str
    port: int
    fingerprint: str

    @staticmethod
    def read(given: str) -> JoinLine:
        """Of a line, or of a file that holds one. UserError if it is neither."""
        text = given.strip()
        if "@" not in text:
            try:
                text = Path(text).expanduser().read_text().strip()
            except (OSError, UnicodeDecodeError, ValueError) as e:
                raise UserError(f"--join takes the line that `headrace token` shows, or a file of it: {e}.") from e
        found = _LINE.fullmatch(text)
        if not found or not 0 < int(found["port"]) < 65536:
            raise UserError(
                "--join takes the line that `headrace token` shows: TOKEN@HOST:PORT/sha256:FINGERPRINT, without spaces."
            )
        return JoinLine(found["token"], found["host"].strip("[]"), int(found["port"]), found["sha"])

    @property
    def address(self) -> str:
        return finding.at(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.token}@{self.address}/sha256:{self.fingerprint}"


async def ensure_joined(given: str, role: Role, name: str, path: Path) -> Kept:
    """What joining with the line `given` brings, kept in `path`; what is there, if that is of the same cluster and has
    not ended. Waits for a head that cannot be reached. UserError if it does not take the token.
    """
    line = JoinLine.read(given)
    if kept := _joined_before(line, path):
        return kept
    told = ""
    while True:
        try:
            return await join(line, role, name, path)
        except Unavailable as e:
            if isinstance(e, TlsFailed):
                raise UserError(e.message) from e
            if e.message != told:
                told = e.message
                log.warning("cannot_join_yet", error=told)
        except HeadraceError as e:
            raise UserError(e.message) from e
        await asyncio.sleep(_AGAIN_S * random.uniform(0.5, 1.0))


def _joined_before(line: JoinLine, path: Path) -> Kept | None:
    if not path.exists():
        return None
    kept = Kept(path)
    same = certificates.fingerprint_of(kept.current().authority) == line.fingerprint
    return kept if kept.head and finding.holds(kept) and same else None


async def join(line: JoinLine, role: Role, name: str, path: Path) -> Kept:
    """Get a certificate for `role` and `name`, and keep it in `path`. HeadraceError, with a sentence, if not."""
    key_path = path.with_name(f"{path.name}.key")
    try:
        private_folder(path.parent)
        # The same key for every try: the head knows by it who has lost its answer and asks again.
        if not key_path.exists():
            write_atomic(key_path, certificates.key_pem(certificates.new_key()).decode(), mode=0o600)
        key = certificates.load_key(key_path.read_bytes())
    except OSError as e:
        raise UserError(f"Cannot keep a certificate in {path.parent}: {e.strerror}.") from e
    except ValueError:
        key_path.unlink(missing_ok=True)
        raise UserError(f"{key_path} was damaged and is removed; try again.") from None
    authority = await asyncio.to_thread(_authority_at, line)
    request = join_pb2.JoinRequest(token=line.token, role=role, name=name, request=certificates.request_for(key))
    options = [*OPTIONS, ("grpc.ssl_target_name_override", JOIN_NAME)]
    async with grpc.aio.secure_channel(
        line.address, grpc.ssl_channel_credentials(authority), options=options
    ) as channel:
        try:
            answer = await join_pb2_grpc.JoinServiceStub(channel).Join(request, timeout=_CALL_S)
        except grpc.RpcError as e:
            raise from_rpc(e, f"the head's join port at {line.address}", JOIN_NAME) from e
    head = Head(line.host, answer.node_port, answer.grpc_port)
    kept = keep(path, Material(certificates.key_pem(key), answer.certificate, authority), head)
    key_path.unlink(missing_ok=True)
    log.info("joined", role=str(role), name=name, head=line.host)
    return kept


def _authority_at(line: JoinLine) -> bytes:
    """The authority's certificate (PEM), if it is that of the line."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the fingerprint decides
    context.set_alpn_protocols(["h2"])
    where = f"the head's join port at {line.address}"
    try:
        with socket.create_connection((line.host, line.port), _CALL_S) as sock:
            try:
                with context.wrap_socket(sock) as tls:
                    der = tls.getpeercert(binary_form=True) or b""
            except ssl.SSLError as e:
                raise TlsFailed(
                    f"TLS failed: what listens at {line.address} does not speak it as a head does ({e.reason}); is it"
                    " the head's --join_port?"
                ) from e
    except OSError as e:
        raise Unavailable(f"Cannot reach {where}: {e.strerror or e}.") from e
    found = hashlib.sha256(der).hexdigest()
    if found != line.fingerprint:
        raise TlsFailed(
            f"TLS failed: the authority at {line.address} is not the one of the line: its fingerprint is"
            f" sha256:{found}. Either the head's state folder was made anew (then run `headrace token` again), or"
            " somebody is in between."
        )
    return ssl.DER_cert_to_PEM_cert(der).encode()


async def keep_fresh(kept: Kept, role: Role) -> None:
    """Have the head renew what joining has brought, each time before it ends, until cancelled."""
    while True:
        await until_renewed(kept, lambda: renew(kept, role))


async def renew(kept: Kept, role: Role) -> None:
    """Have the head renew a certificate now. HeadraceError if it does not."""
    head, key = kept.head, certificates.new_key()
    assert head is not None
    address = finding.at(head.host, head.node_port if role is Role.NODE else head.grpc_port)
    async with Connection(address, kept, Role.HEAD) as connection:
        stub = join_pb2_grpc.CertificateServiceStub(connection.channel())
        try:
            answer = await stub.Renew(join_pb2.RenewRequest(request=certificates.request_for(key)), timeout=_CALL_S)
        except grpc.RpcError as e:
            raise from_rpc(e, f"the head at {address}", connection.expected) from e
    keep(kept.path, Material(certificates.key_pem(key), answer.certificate, kept.current().authority), head)


def own_name() -> str:
    """What a proxy or a command line is called among those that have joined."""
    return f"{socket.gethostname()[:64]}-{os.getuid()}"
