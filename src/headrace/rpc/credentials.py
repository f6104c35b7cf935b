"""What a part shows to others and checks them by. Every gRPC connection is mutual TLS; there is no other kind.

`Issued`: from the authority in the state folder, for as long as the process lives. `Kept`: a file that somebody keeps
fresh. `OwnFiles`: certificates of the user's own. All of them are looked at again for every new connection.
"""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import grpc
import structlog

from headrace.errors import UserError
from headrace.process import write_atomic
from headrace.rpc import certificates
from headrace.rpc.authority import Authority
from headrace.rpc.roles import Role
from headrace.settings import TlsSettings

log = structlog.get_logger()

CREDENTIAL_ENV = "HEADRACE_CREDENTIAL"  # tells a replica where its scheduler keeps their certificate
RENEW_AT = 2 / 3  # of a certificate's life


@dataclass(frozen=True, slots=True)
class Material:
    """A key, its certificate, and that of the authority which all peers must have; PEM."""

    key: bytes
    certificate: bytes
    authority: bytes


class Credentials(Protocol):
    def current(self) -> Material:
        """What holds now. Cheap when nothing has changed; once made it does not fail."""
        ...

    def expected(self, role: Role) -> str:
        """The name that a peer of this role must have in its certificate; "": the address that is dialled."""
        ...


class Issued:
    """A certificate for this process, from the authority; a new one in time."""

    def __init__(self, authority: Authority, role: Role, name: str, life_s: float) -> None:
        self._authority, self._role, self._name, self._life_s = authority, role, name, life_s
        self._made_at = self._renew_at = 0.0
        self._material = self._issue()

    def current(self) -> Material:
        # A clock that was set back makes of it one that is not valid yet.
        if not self._made_at <= time.time() < self._renew_at:
            self._material = self._issue()
        return self._material

    def expected(self, role: Role) -> str:
        return role.dns_name

    def _issue(self) -> Material:
        key, self._made_at = certificates.new_key(), time.time()
        self._renew_at = self._made_at + RENEW_AT * self._life_s
        pem = self._authority.issue(key.public_key(), self._role, self._name, self._life_s)
        return Material(certificates.key_pem(key), pem, self._authority.pem)


@dataclass(frozen=True, slots=True)
class Head:
    """Where one that has joined finds its head: a host, and the head's ports."""

    host: str
    node_port: int
    grpc_port: int


class Kept:
    """A certificate in a file of ours, 0600, replaced as a whole. `head`: set if it came by joining."""

    def __init__(self, path: Path) -> None:
        """UserError if the file cannot be read."""
        self.path = path
        self._seen: object = None
        self._material, self.head = self._read()

    def current(self) -> Material:
        if self._seen != _signature(self.path):
            try:
                self._material, self.head = self._read()
            except UserError as e:
                log.error("credential_unreadable", path=str(self.path), error=e.message)
        return self._material

    def expected(self, role: Role) -> str:
        return role.dns_name

    @property
    def ends_at(self) -> float:
        return certificates.ends_at(self.current().certificate)

    def _read(self) -> tuple[Material, Head | None]:
        self._seen = _signature(self.path)
        try:
            data = json.loads(self.path.read_text())
            material = Material(*(str(data[k]).encode() for k in ("key", "certificate", "authority")))
            certificates.ends_at(material.certificate)
            head = data.get("head")
            return material, Head(**head) if head else None
        except OSError as e:
            raise UserError(f"Cannot read the certificate {self.path}: {e.strerror}.") from e
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{self.path} is damaged: remove it, and have this machine join again.") from e


def keep(path: Path, material: Material, head: Head | None = None) -> Kept:
    """Write a certificate for `Kept`. UserError if that cannot be done."""
    parts = {k: v.decode() for k, v in asdict(material).items()}
    try:
        write_atomic(path, json.dumps(parts | ({"head": asdict(head)} if head else {})), mode=0o600)
    except OSError as e:
        raise UserError(f"Cannot write the certificate {path}: {e.strerror}.") from e
    return Kept(path)


class OwnFiles:
    """Certificates of the user's own: three PEM files, which may change. A new set counts once it fits together."""

    def __init__(self, cert: Path, key: Path, ca: Path, name: str = "") -> None:
        """`name`: expected of every peer instead of the address. UserError if the files cannot be used."""
        self._paths = key, cert, ca
        self._name = name
        self._seen = self._signatures()
        self._material = self._read()

    def current(self) -> Material:
        seen = self._signatures()
        if seen != self._seen:
            self._seen = seen
            try:
                self._material = self._read()
                log.info("certificate_changed", path=str(self._paths[1]))
            except UserError as e:
                log.warning("certificate_change_ignored", error=e.message)
        return self._material

    def expected(self, role: Role) -> str:
        return self._name

    def _signatures(self) -> object:
        return tuple(map(_signature, self._paths))

    def _read(self) -> Material:
        try:
            key, cert, ca = (p.read_bytes() for p in self._paths)
        except OSError as e:
            raise UserError(f"Cannot read the TLS file {e.filename}: {e.strerror}.") from e
        if wrong := _misfit(key, cert, ca):
            raise UserError(f"The TLS files {', '.join(map(str, self._paths))} cannot be used: {wrong}.")
        return Material(key, cert, ca)


def own_files(given: TlsSettings) -> OwnFiles | None:
    """Those that the settings name; None without any. UserError if they are not all there or cannot be used."""
    if not (given.cert or given.key or given.ca):
        return None
    if not (given.cert and given.key and given.ca):
        raise UserError("TLS needs all three files: --tls_cert, --tls_key and --tls_ca.")
    return OwnFiles(given.cert, given.key, given.ca, given.name)


def from_environment() -> Credentials:
    """Those that a scheduler names for its replica, and keeps fresh. UserError if there are none."""
    if path := os.environ.get(CREDENTIAL_ENV):
        return Kept(Path(path))
    cert, key, ca = (Path(v) if (v := os.environ.get(f"HEADRACE_TLS_{x}")) else None for x in ("CERT", "KEY", "CA"))
    own = own_files(TlsSettings(cert=cert, key=key, ca=ca))
    if own is None:
        raise UserError(f"A replica needs a certificate: {CREDENTIAL_ENV} names none.")
    return own


def client_side(material: Material) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(material.authority, material.key, material.certificate)


def server_side(credentials: Credentials) -> grpc.ServerCredentials:
    """For a server that asks every client for a certificate; each connection gets what is current."""

    @lru_cache(maxsize=1)
    def made(material: Material) -> grpc.ServerCertificateConfiguration:
        pair = (material.key, material.certificate)
        return grpc.ssl_server_certificate_configuration([pair], material.authority)

    def fetch() -> grpc.ServerCertificateConfiguration:
        return made(credentials.current())

    return grpc.dynamic_ssl_server_credentials(fetch(), fetch, require_client_authentication=True)


def _signature(path: Path) -> object:
    """Differs when the file is another one, or has been written."""
    try:
        s = os.stat(path)
        return s.st_ino, s.st_mtime_ns, s.st_size
    except OSError:
        return None


def _misfit(key: bytes, cert: bytes, ca: bytes) -> str:
    """What keeps these from being used together; "" if nothing does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with tempfile.NamedTemporaryFile() as file:  # 0600; a chain is read from files only
        file.write(key + b"\n" + cert)
        file.flush()
        try:
            context.load_cert_chain(file.name, password=lambda: "")
        except (ssl.SSLError, ValueError, OSError) as e:
            if "KEY_VALUES_MISMATCH" in str(e):
                return "the key is not that of the certificate"
            return "the key or the certificate is no PEM file, or the key has a password"
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return "the authority's certificate is no PEM file"
    return ""
