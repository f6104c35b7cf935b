"""Which credentials a part uses: the user's own files, what joining has brought, or what the state folder's authority
gives."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

from headrace.errors import UserError
from headrace.rpc.authority import Authority, has_authority
from headrace.rpc.credentials import Credentials, Issued, Kept, own_files
from headrace.rpc.roles import Role
from headrace.settings import TlsSettings

_JOIN = {
    Role.NODE: "start this once with the line that `headrace token` shows there (--join=…)",
    Role.PROXY: "start this once with the line that `headrace token --role=proxy` shows there (--join=…)",
    Role.ADMIN: "run the line that `headrace token --role=admin` shows there (headrace join …)",
}


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def at(host: str, port: int) -> str:
    """host:port, with brackets where they belong."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """The host of host:port."""
    return address.rpartition(":")[0].strip("[]")


def credential_path(state_dir: Path, role: Role) -> Path:
    """Where a proxy or the command line of a machine keeps what it got by joining."""
    return state_dir / "credentials" / f"{role}.json"


def from_state(state_dir: Path, role: Role, name: str, tls: TlsSettings) -> Credentials:
    """The user's own files, else a certificate from the authority of the state folder, which is made if need be."""
    return own_files(tls) or Issued(Authority.open(state_dir), role, name, tls.life_s)


def joined(path: Path) -> Kept | None:
    """What this machine got by joining, if it has joined. UserError if that has ended, or cannot be read."""
    if not _there(path):
        return None
    kept = Kept(path)
    if kept.head is None:
        return None
    if not holds(kept):
        ended = time.strftime("%Y-%m-%d", time.gmtime(kept.ends_at))
        raise UserError(
            f"The certificate of this machine ended on {ended}: run `headrace token` where the head runs, and join"
            f" again with the line that it shows. ({path})"
        )
    return kept


def holds(kept: Kept) -> bool:
    return kept.ends_at > time.time()


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as e:
        raise UserError(
            f"Cannot look into {path.parent}: run this as the user that runs the head, or give another --state_dir."
        ) from e


def uses_joined(path: Path, state_dir: Path, head_host: str) -> bool:
    """Whether to use what was got by joining, and not the state folder's authority, for a head at `head_host` ("": the
    one that was joined, if any)."""
    return _there(path) and not (is_loopback(head_host) and has_authority(state_dir))


def find(role: Role, name: str, tls: TlsSettings, state_dir: Path, head_host: str) -> Credentials:
    """Those of a proxy or of the command line. UserError, with what to do, if there are none."""
    if own := own_files(tls):
        return own
    path = credential_path(state_dir, role)
    if uses_joined(path, state_dir, head_host) and (kept := joined(path)):
        return kept
    near = not head_host or is_loopback(head_host)
    # A command must not make an authority: it would only be a stranger's.
    if not has_authority(state_dir) and (role is Role.ADMIN or not near):
        raise no_credential(role, head_host)
    return Issued(Authority.open(state_dir), role, name, tls.life_s)


class NoCredential(UserError):
    """There is nothing to show to this head."""


def no_credential(role: Role, head_host: str) -> NoCredential:
    if role is Role.ADMIN and is_loopback(head_host):
        return NoCredential(
            f"This user has no certificate for the head at {head_host}: run this as the user that runs the head, and"
            " with its --state_dir."
        )
    return NoCredential(
        f"This machine has no certificate for the head at {head_host}: {_JOIN[role]}, or give --tls_cert, --tls_key and"
        " --tls_ca."
    )
