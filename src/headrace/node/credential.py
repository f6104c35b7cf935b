"""The certificate of this node: for the scheduler and its replicas, in a file that the scheduler keeps fresh."""

from __future__ import annotations

from pathlib import Path

from headrace.rpc import certificates, joining
from headrace.rpc.authority import Authority, has_authority
from headrace.rpc.credentials import Credentials, Kept, Material, keep, own_files
from headrace.rpc.finding import is_loopback, joined, no_credential, uses_joined
from headrace.rpc.renewal import until_renewed
from headrace.rpc.roles import Role
from headrace.settings import SchedulerSettings


def credential_file(settings: SchedulerSettings) -> Path:
    return settings.node_dir.absolute() / "credential.json"


async def obtain(settings: SchedulerSettings) -> Credentials:
    """The user's own files, what was got by joining, or a new certificate from the authority of the state folder.

    UserError, with what to do, if there are none.
    """
    if own := own_files(settings.tls):
        return own
    path = credential_file(settings)
    if settings.join:
        return await joining.ensure_joined(settings.join, Role.NODE, settings.node_id, path)
    if uses_joined(path, settings.state_dir, settings.head_address) and (kept := joined(path)):
        return kept
    if settings.head_address and not is_loopback(settings.head_address) and not has_authority(settings.state_dir):
        raise no_credential(Role.NODE, settings.head_address)
    return keep(path, _issue(settings))


def _issue(settings: SchedulerSettings) -> Material:
    authority, key = Authority.open(settings.state_dir), certificates.new_key()
    pem = authority.issue(key.public_key(), Role.NODE, settings.node_id, settings.tls.life_s)
    return Material(certificates.key_pem(key), pem, authority.pem)


async def keep_fresh(kept: Kept, settings: SchedulerSettings) -> None:
    """Have a new certificate in the file before the old one ends, until cancelled."""

    async def renew() -> None:
        keep(kept.path, _issue(settings))

    if kept.head:
        await joining.keep_fresh(kept, Role.NODE)
    while True:
        await until_renewed(kept, renew)
